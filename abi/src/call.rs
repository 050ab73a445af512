//! The request and the answer of one call of a module, as bytes.
//!
//! ```text
//! request   head (64 bytes)   texts: each argument, then each variable as K=V, with a 4-byte length before it   standard input
//! answer    head (64 bytes)   error text   standard output   standard error
//! ```
//!
//! All numbers are little-endian. A request that is longer than a message goes in pieces ([`CallData`]); an answer whose
//! outputs do not fit has them sent before it ([`CallOutput`]) and says so. Both sides copy first, then decode; what a
//! decoded head says about lengths is true of the bytes it came with.
//!
//! [`CallData`]: crate::message::Kind::CallData
//! [`CallOutput`]: crate::message::Kind::CallOutput

use crate::message::ExitKind;

/// Bytes of a request's and of an answer's head.
pub const HEAD_BYTES: usize = 64;
/// Longest request, in bytes.
pub const MAX_REQUEST_BYTES: u64 = 64 << 20;
/// Arguments and variables that a call can have.
pub const MAX_TEXTS: u32 = 1 << 16;
/// Most that is kept of each of a call's outputs, in bytes, whatever the request says.
pub const MAX_OUTPUT_BYTES: u64 = 256 << 20;
/// Length of a piece of output that does not fit the answer. Pieces begin at its multiples, so the receiver needs no list.
pub const PIECE_BYTES: usize = 32 << 10;
/// Longest error text in an answer, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 << 10;

/// No limit.
pub const UNLIMITED: u64 = u64::MAX;

/// How a call is to run, and how long the parts of its request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// How long it may take from its start, in nanoseconds.
    pub wall_limit_ns: u64,
    /// How much CPU time it may have, in nanoseconds.
    pub cpu_limit_ns: u64,
    /// How many bytes its linear memories and tables may have.
    pub memory_limit_bytes: u64,
    /// How many bytes are kept of each of its outputs.
    pub max_output_bytes: u64,
    /// The class of its task: 0 high, 1 normal, 2 low.
    pub priority: u32,
    /// Arguments, `argv[0]` included.
    pub args: u32,
    /// Variables.
    pub vars: u32,
    /// Bytes of both, with their lengths.
    pub texts_bytes: u32,
    /// Bytes of standard input.
    pub stdin_bytes: u64,
}

impl RequestHead {
    /// Bytes of the whole request.
    pub const fn request_bytes(&self) -> u64 {
        (HEAD_BYTES as u64 + self.texts_bytes as u64).saturating_add(self.stdin_bytes)
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        words_to_bytes([
            self.wall_limit_ns,
            self.cpu_limit_ns,
            self.memory_limit_bytes,
            self.max_output_bytes,
            pair(self.priority, self.args),
            pair(self.vars, self.texts_bytes),
            self.stdin_bytes,
            0,
        ])
    }

    /// Reads what [`encode`](Self::encode) wrote for a request of `request_bytes` bytes; `None` if it does not fit that, or
    /// exceeds what this module allows.
    pub fn decode(bytes: &[u8], request_bytes: u64) -> Option<RequestHead> {
        let words = bytes_to_words(bytes)?;
        let head = RequestHead {
            wall_limit_ns: words[0],
            cpu_limit_ns: words[1],
            memory_limit_bytes: words[2],
            max_output_bytes: words[3].min(MAX_OUTPUT_BYTES),
            priority: words[4] as u32,
            args: (words[4] >> 32) as u32,
            vars: words[5] as u32,
            texts_bytes: (words[5] >> 32) as u32,
            stdin_bytes: words[6],
        };
        let texts = head.args.checked_add(head.vars)?;
        let valid = words[7] == 0
            && head.priority <= 2
            && texts <= MAX_TEXTS
            && u64::from(head.texts_bytes) >= 4 * u64::from(texts)
            && head.request_bytes() == request_bytes
            && request_bytes <= MAX_REQUEST_BYTES;
        valid.then_some(head)
    }
}

/// The texts of a request, one after the other. Ends early at one that is not as announced.
pub struct Texts<'a>(&'a [u8]);

impl<'a> Texts<'a> {
    /// The texts in these bytes.
    pub const fn new(bytes: &'a [u8]) -> Texts<'a> {
        Texts(bytes)
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> Iterator for Texts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.0 = rest;
        core::str::from_utf8(text).ok()
    }
}

/// How a call went, and how long the parts of its answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// How it ended.
    pub kind: ExitKind,
    /// Its exit code.
    pub code: u32,
    /// More was written to standard output than is kept.
    pub stdout_cut: bool,
    /// The same of standard error.
    pub stderr_cut: bool,
    /// The call found no memory of its module's ready for use.
    pub cold: bool,
    /// The outputs were sent before.
    pub in_pieces: bool,
    /// Bytes of the error text.
    pub text_bytes: u32,
    /// Bytes of standard output.
    pub stdout_bytes: u64,
    /// Bytes of standard error.
    pub stderr_bytes: u64,
    /// CPU time it had, in nanoseconds.
    pub cpu_ns: u64,
    /// From its arrival in the guest to its start, in nanoseconds.
    pub queued_ns: u64,
    /// From its start to its end, in nanoseconds.
    pub ran_ns: u64,
}

impl AnswerHead {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let flags = [self.stdout_cut, self.stderr_cut, self.cold, self.in_pieces];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u32::from(*flag));
        words_to_bytes([
            pair(self.kind as u32 | flags << 8, self.code),
            u64::from(self.text_bytes),
            self.stdout_bytes,
            self.stderr_bytes,
            self.cpu_ns,
            self.queued_ns,
            self.ran_ns,
            0,
        ])
    }

    /// Reads what [`encode`](Self::encode) wrote at the start of an answer of `answer_bytes` bytes; `None` if it does not fit
    /// that.
    pub fn decode(bytes: &[u8], answer_bytes: usize) -> Option<AnswerHead> {
        let words = bytes_to_words(bytes)?;
        let flag = |bit: u32| words[0] >> (8 + bit) & 1 != 0;
        let head = AnswerHead {
            kind: ExitKind::from_number(words[0] as u32 & 0xff)?,
            code: (words[0] >> 32) as u32,
            stdout_cut: flag(0),
            stderr_cut: flag(1),
            cold: flag(2),
            in_pieces: flag(3),
            text_bytes: u32::try_from(words[1]).ok()?,
            stdout_bytes: words[2],
            stderr_bytes: words[3],
            cpu_ns: words[4],
            queued_ns: words[5],
            ran_ns: words[6],
        };
        let outputs = head.stdout_bytes.checked_add(head.stderr_bytes)?;
        let here = if head.in_pieces { 0 } else { outputs };
        let bytes = (HEAD_BYTES as u64 + u64::from(head.text_bytes)).checked_add(here)?;
        let valid = words[0] & 0xffff_f000 == 0
            && words[7] == 0
            && bytes == answer_bytes as u64
            && head.stdout_bytes <= MAX_OUTPUT_BYTES
            && head.stderr_bytes <= MAX_OUTPUT_BYTES;
        valid.then_some(head)
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

fn words_to_bytes(words: [u64; 8]) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn bytes_to_words(bytes: &[u8]) -> Option<[u64; 8]> {
    let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
    let mut words = [0; 8];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: RequestHead = RequestHead {
        wall_limit_ns: 1,
        cpu_limit_ns: UNLIMITED,
        memory_limit_bytes: 3,
        max_output_bytes: 4,
        priority: 2,
        args: 1,
        vars: 2,
        texts_bytes: 15,
        stdin_bytes: 9,
    };
    const ANSWER: AnswerHead = AnswerHead {
        kind: ExitKind::Trap,
        code: 7,
        stdout_cut: true,
        stderr_cut: false,
        cold: true,
        in_pieces: false,
        text_bytes: 3,
        stdout_bytes: 5,
        stderr_bytes: 6,
        cpu_ns: 1,
        queued_ns: 2,
        ran_ns: 3,
    };

    #[test]
    fn heads_survive_a_round_trip() {
        assert_eq!(RequestHead::decode(&REQUEST.encode(), 64 + 15 + 9), Some(REQUEST));
        assert_eq!(AnswerHead::decode(&ANSWER.encode(), 64 + 3 + 5 + 6), Some(ANSWER));
        let apart = AnswerHead { in_pieces: true, stdout_cut: false, ..ANSWER };
        assert_eq!(AnswerHead::decode(&apart.encode(), 64 + 3), Some(apart));
    }

    #[test]
    fn heads_that_do_not_fit_their_bytes_are_refused() {
        let request = |change: &dyn Fn(&mut RequestHead)| {
            let mut head = REQUEST;
            change(&mut head);
            RequestHead::decode(&head.encode(), 64 + 15 + 9)
        };
        assert!(request(&|_| ()).is_some());
        assert_eq!(request(&|head| head.stdin_bytes = 8), None);
        assert_eq!(request(&|head| head.stdin_bytes = u64::MAX), None);
        assert_eq!(request(&|head| head.priority = 3), None);
        assert_eq!(request(&|head| head.args = 3), None);
        assert_eq!(request(&|head| (head.args, head.vars) = (u32::MAX, 2)), None);
        assert_eq!(RequestHead::decode(&REQUEST.encode()[..63], 64 + 15 + 9), None);
        assert_eq!(AnswerHead::decode(&ANSWER.encode(), 64 + 3), None);
        let long = AnswerHead { stdout_bytes: u64::MAX, ..ANSWER };
        assert_eq!(AnswerHead::decode(&long.encode(), 64 + 3), None);
        let mut unknown = ANSWER.encode();
        unknown[0] = 99;
        assert_eq!(AnswerHead::decode(&unknown, 64 + 3 + 5 + 6), None);
    }

    #[test]
    fn texts_end_at_the_first_that_is_wrong() {
        let mut texts = Texts::new(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c");
        assert_eq!((texts.next(), texts.next(), texts.next()), (Some("ab"), Some(""), Some("c")));
        assert!(texts.is_empty() && texts.next().is_none());
        for wrong in [&b"\x03\0\0\0ab"[..], b"\x01\0\0", b"\x01\0\0\0\xff", b"\xff\xff\xff\xffabc"] {
            let mut texts = Texts::new(wrong);
            assert!(texts.next().is_none());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80), len in any::<u64>()) {
            if let Some(head) = RequestHead::decode(&bytes, len) {
                prop_assert_eq!(head.request_bytes(), len);
            }
            let _ = AnswerHead::decode(&bytes, len as usize);
            prop_assert!(Texts::new(&bytes).count() <= bytes.len());
        }
    }
}
