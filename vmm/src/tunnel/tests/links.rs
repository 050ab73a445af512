//! Links between hosts over streams that are cut anywhere, or on which somebody else speaks.

use super::super::link::{LinkState, Taker};
use super::*;
use std::sync::Weak;
use std::sync::mpsc;

/// Takes messages, and keeps them; now and then it has no room.
#[derive(Default)]
struct Keeper {
    got: Mutex<Vec<(u64, Vec<u8>)>>,
    asked: AtomicUsize,
}

impl Taker for Keeper {
    fn take(&self, header: Header, body: &[u8], waker: &Waker) -> bool {
        if self.asked.fetch_add(1, Ordering::SeqCst) % 3 == 1 {
            waker.wake_by_ref();
            return false;
        }
        self.got.lock().unwrap().push((header.arg, body.to_vec()));
        true
    }

    fn pause(&self) {}
}

fn link_end() -> (Arc<Link>, Arc<Keeper>) {
    let keeper = Arc::new(Keeper::default());
    (Link::new(OriginId([1; 16]), &LinkState::default(), keeper.clone()), keeper)
}

/// A network that ends after so many bytes of one direction.
fn cut_after(count: usize, forth: bool) -> (UnixStream, UnixStream) {
    let ((one, near), (far, other)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let copy = |from: &UnixStream, to: &UnixStream, mut left: usize| {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while left > 0
                && let Ok(read @ 1..) = from.read(&mut buffer)
            {
                let passed = read.min(left);
                left -= passed;
                if to.write_all(&buffer[..passed]).is_err() {
                    break;
                }
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        })
    };
    copy(&near, &far, if forth { count } else { usize::MAX });
    copy(&far, &near, if forth { usize::MAX } else { count });
    (one, other)
}

/// Sends messages both ways over streams that are cut, then over one that is not.
fn survives(cuts: &[(usize, bool)], lens: &[usize]) {
    let ((here, at_here), (there, at_there)) = (link_end(), link_end());
    let message = |number: usize| {
        let header = Header::new(Kind::SocketData, 1).arg(number as u64);
        (header, vec![number as u8; lens[number]])
    };
    let mut unsent = 0..lens.len();
    for (count, forth) in cuts.iter().copied() {
        if let Some(number) = unsent.next() {
            let (header, body) = message(number);
            here.post(header, &body).unwrap();
            there.post(header, &body).unwrap();
        }
        let (told, broke) = mpsc::channel();
        let (one, other) = cut_after(count, forth);
        let others = told.clone();
        here.attach(one, Box::new(move |why| told.send(why).unwrap_or(()))).unwrap();
        there.attach(other, Box::new(move |why| others.send(why).unwrap_or(()))).unwrap();
        // It breaks, unless there was less to say than the cut is away.
        let why = wait_for("a break, or rest", || {
            broke
                .try_recv()
                .ok()
                .map(Some)
                .or_else(|| (here.is_drained() && there.is_drained()).then_some(None))
        });
        assert!(why.is_none_or(|why| !why.is_final()));
    }
    for number in unsent {
        let (header, body) = message(number);
        here.post(header, &body).unwrap();
        there.post(header, &body).unwrap();
    }
    let (one, other) = UnixStream::pair().unwrap();
    here.attach(one, Box::new(|_| ())).unwrap();
    there.attach(other, Box::new(|_| ())).unwrap();
    wait_for("everything", || (here.is_drained() && there.is_drained()).then_some(()));
    let expected: Vec<(u64, Vec<u8>)> =
        (0..lens.len()).map(|number| (number as u64, message(number).1)).collect();
    for (keeper, end) in [(at_here, here), (at_there, there)] {
        assert_eq!(*keeper.got.lock().unwrap(), expected, "{cuts:?}");
        end.close();
    }
}

#[test]
fn a_stream_may_be_cut_at_any_byte() {
    for forth in [true, false] {
        // Hello, two messages and the acknowledgements of two have fewer.
        for count in 0..200 {
            survives(&[(count, forth)], &[5, 9]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn streams_may_be_cut_again_and_again(
        cuts in prop::collection::vec((0usize..3000, any::<bool>()), 0..6),
        lens in prop::collection::vec(0usize..2000, 0..12),
    ) {
        survives(&cuts, &lens);
    }
}

#[test]
fn ends_that_do_not_fit_are_told_so() {
    let attach = |link: &Arc<Link>, stream| {
        let (told, broke) = mpsc::channel();
        link.attach(stream, Box::new(move |why| told.send(why).unwrap_or(()))).unwrap();
        broke
    };
    for hello in [
        frame::hello(OriginId([2; 16]), 0),
        frame::hello(OriginId([1; 16]), 1),
        [frame::hello(OriginId([1; 16]), 0), frame::ack(1)].concat(),
    ] {
        let (link, _) = link_end();
        let (here, mut there) = UnixStream::pair().unwrap();
        let broke = attach(&link, here);
        there.write_all(&hello).unwrap();
        assert_eq!(broke.recv_timeout(PATIENCE), Ok(Break::OutOfStep));
        assert!(link.attach(UnixStream::pair().unwrap().0, Box::new(|_| ())).is_err());
        assert_eq!(link.post(Header::new(Kind::SocketData, 1), b""), Err(SendError::Ended));
    }
    let header = Header::new(Kind::SocketData, 1);
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame::ack(0),
        frame::message(0, header, b""),
        [frame::hello(OriginId([1; 16]), 0), frame::message(1, header, b"")].concat(),
        [frame::hello(OriginId([1; 16]), 0), frame::hello(OriginId([1; 16]), 0)].concat(),
    ] {
        let (link, keeper) = link_end();
        let (here, mut there) = UnixStream::pair().unwrap();
        let broke = attach(&link, here);
        there.write_all(&garbage).unwrap();
        assert!(matches!(broke.recv_timeout(PATIENCE), Ok(Break::Stream(_))), "{garbage:?}");
        assert!(keeper.got.lock().unwrap().is_empty());
        link.close();
    }
}

#[test]
fn an_end_that_takes_nothing_costs_bounded_memory() {
    let (link, _) = link_end();
    let (header, body) = (Header::new(Kind::SocketData, 1), vec![0; Sender::MAX_BODY]);
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    let taken = (0..1000).take_while(|_| link.try_post(header, &body, &waker) == Ok(true)).count();
    assert!((taken - 1) * body.len() < link::WINDOW_BYTES && woken.0.load(Ordering::SeqCst) == 0);
    // With somebody who takes it there is room again.
    let (there, keeper) = link_end();
    let (one, other) = UnixStream::pair().unwrap();
    link.attach(one, Box::new(|_| ())).unwrap();
    there.attach(other, Box::new(|_| ())).unwrap();
    wait_for("room", || (woken.0.load(Ordering::SeqCst) == 1).then_some(()));
    wait_for("all", || link.is_drained().then_some(()));
    assert_eq!(keeper.got.lock().unwrap().len(), taken);
    there.close();
    let posted = (0..1000).take_while(|_| link.post(header, &body) == Ok(())).count();
    assert!(posted * body.len() <= link::MAX_QUEUED_BYTES);
    let over: Weak<Link> = Arc::downgrade(&link);
    drop(link);
    wait_for("the end of its threads", || over.upgrade().is_none().then_some(()));
}
