//! What the host makes of a guest's answers, whatever they say.

use super::*;
use nacre_abi::call::PIECE_BYTES;
use std::sync::mpsc;

fn head(out: u64, err: u64, in_pieces: bool) -> AnswerHead {
    AnswerHead {
        kind: ExitKind::Code,
        code: 3,
        stdout_cut: false,
        stderr_cut: true,
        cold: false,
        in_pieces,
        text_bytes: 0,
        stdout_bytes: out,
        stderr_bytes: err,
        cpu_ns: 1,
        queued_ns: 2,
        ran_ns: 3,
    }
}

/// A call with this much room for each output; what becomes of it is in the receiver.
fn entered(calls: &Calls, max_output: usize) -> (u32, mpsc::Receiver<CallResult>) {
    let (sender, results) = mpsc::channel();
    let place = calls.enter(max_output, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    (place.index, results)
}

#[test]
fn an_answer_in_one_message_is_taken_apart() {
    let calls = Calls::new(256);
    let (call, results) = entered(&calls, 10);
    let body = [&head(2, 1, false).encode()[..], b"abc"].concat();
    assert!(calls.deliver(Header::new(Kind::CallDone, call), &body));
    let result = results.recv().unwrap();
    assert_eq!((result.exit, result.stdout, result.stderr), (Exit::Code(3), b"ab".to_vec(), b"c".to_vec()));
    assert!(result.stderr_cut && !result.stdout_cut);
    // Nobody waits for a second one, or one that was never made.
    assert!(calls.deliver(Header::new(Kind::CallDone, call), &body));
    assert!(calls.deliver(Header::new(Kind::CallDone, 77), &body));
    assert!(!calls.deliver(Header::new(Kind::ProgramExited, call), &body));
}

#[test]
fn pieces_come_in_any_order_and_each_once() {
    let whole: Vec<u8> = (0..PIECE_BYTES * 2 + 5).map(|at| (at % 251) as u8).collect();
    let piece = |number: usize| &whole[number * PIECE_BYTES..whole.len().min((number + 1) * PIECE_BYTES)];
    let run = |limit: usize, order: &[(u64, &[u8])], len: usize| {
        let calls = Calls::new(256);
        let (call, results) = entered(&calls, limit);
        for (offset, piece) in order {
            calls.deliver(Header::new(Kind::CallOutput, call).stream(stream::STDOUT).arg(*offset), piece);
        }
        calls.deliver(Header::new(Kind::CallDone, call), &head(len as u64, 0, true).encode());
        results.recv().unwrap()
    };
    let at = |number: usize| (number as u64 * PIECE_BYTES as u64, piece(number));
    let len = whole.len();
    assert_eq!(run(len, &[at(2), at(0), at(1)], len).stdout, whole);
    assert_eq!(run(len, &[], 0).exit, Exit::Code(3));
    for (limit, order, said) in [
        (len, vec![at(0), at(1), at(2), at(2)], len),
        (len, vec![at(0), at(1), at(2)], len - 1),
        (len - 1, vec![at(0), at(1), at(2)], len),
        (len, vec![at(0), at(2), (7, piece(1))], len),
        (len, vec![at(0), at(1), at(2), (u64::MAX, piece(2))], len),
    ] {
        let result = run(limit, &order, said);
        assert!(matches!(result.exit, Exit::Error(_)), "{result:?}");
    }
}

/// The pieces and the answer come over different rings.
#[test]
fn an_answer_waits_for_pieces_that_it_has_overtaken() {
    let calls = Calls::new(256);
    let len = PIECE_BYTES + 1;
    let (call, results) = entered(&calls, len);
    let piece = |offset: usize, bytes: &[u8]| {
        let header = Header::new(Kind::CallOutput, call).stream(stream::STDERR).arg(offset as u64);
        calls.deliver(header, bytes)
    };
    calls.deliver(Header::new(Kind::CallDone, call), &head(0, len as u64, true).encode());
    piece(PIECE_BYTES, b"e");
    assert!(results.try_recv().is_err() && calls.any_in_flight());
    piece(0, &[7; PIECE_BYTES]);
    let result = results.try_recv().unwrap();
    assert_eq!((result.exit, result.stderr), (Exit::Code(3), [&[7; PIECE_BYTES][..], b"e"].concat()));
    assert!(!calls.any_in_flight());
    // One that can't belong to it ends the wait.
    let (call, results) = entered(&calls, len);
    calls.deliver(Header::new(Kind::CallDone, call), &head(len as u64, 0, true).encode());
    assert!(results.try_recv().is_err());
    calls.deliver(Header::new(Kind::CallOutput, call).stream(stream::STDOUT).arg(7), b"x");
    assert!(matches!(results.try_recv().unwrap().exit, Exit::Error(_)));
}

#[test]
fn answers_that_make_no_sense_end_the_call() {
    for body in [
        &b""[..],
        &[0xff; 64],
        &head(11, 0, false).encode(),
        &[&head(11, 0, false).encode()[..], &[0; 11]].concat(),
        &head(u64::MAX, 1, true).encode(),
    ] {
        let calls = Calls::new(256);
        let (call, results) = entered(&calls, 10);
        calls.deliver(Header::new(Kind::CallDone, call), body);
        assert!(matches!(results.recv().unwrap().exit, Exit::Error(_)));
    }
}

#[test]
fn numbers_are_used_again_only_after_the_answer() {
    let calls = Calls::new(16);
    let all: Vec<_> = (0..14).map(|_| entered(&calls, 0)).collect();
    assert!(calls.enter(0, Box::new(|_| ())).is_err_and(|error| error == CallError::Busy));
    calls.deliver(Header::new(Kind::CallDone, all[5].0), &head(0, 0, false).encode());
    let again = entered(&calls, 0);
    assert_eq!(again.0, all[5].0);
    calls.close();
    assert!(matches!(all[0].1.recv().unwrap().exit, Exit::Error(_)));
    assert!(matches!(again.1.recv().unwrap().exit, Exit::Error(_)));
    assert!(calls.enter(0, Box::new(|_| ())).is_err_and(|error| error == CallError::Ended));
}

#[test]
fn requests_say_what_they_hold() {
    let call = Call {
        args: &["a", ""],
        env: &[("K", "v")],
        stdin: b"in",
        max_output: usize::MAX,
        ..Call::default()
    };
    let request = call.encode().unwrap();
    let head = RequestHead::decode(&request, request.len() as u64).unwrap();
    assert_eq!((head.args, head.vars, head.stdin_bytes, head.wall_limit_ns), (2, 1, 2, UNLIMITED));
    let texts = nacre_abi::call::Texts::new(&request[HEAD_BYTES..request.len() - 2]);
    assert_eq!(texts.collect::<Vec<_>>(), ["a", "", "K=v"]);
    let long = vec![0; MAX_REQUEST_BYTES as usize];
    assert!(matches!(Call { stdin: &long, ..Call::default() }.encode(), Err(CallError::TooLong { .. })));
}
