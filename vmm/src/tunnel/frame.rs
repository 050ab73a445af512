//! Frames of a link, little-endian: one byte of kind, [`VERSION`], two zeros, four bytes of length, and so many bytes.
//!
//! ```text
//! both Hello(origin, next)          first of all: whose link this is, and the number of the message that is wanted next
//! both Message(number, acknowledged, header, body)     numbers count from 0 in each direction, without a gap
//! both Ack(acknowledged)            all messages before this number were taken
//! ```
//! After a break both ends say Hello on a new stream and go on with what the other one wants. A stream that says anything else is
//! given up; what was taken stays taken.

use super::OriginId;
use crate::link::Sender;
use nacre_abi::message::{HEADER_WORDS, Header};

/// Version of the frames.
pub const VERSION: u8 = 1;
/// Bytes before a frame's content.
pub const LEAD_BYTES: usize = 8;
const HELLO_BYTES: usize = 24;
const ACK_BYTES: usize = 8;
/// Bytes of a message before its body.
const MESSAGE_BYTES: usize = 16 + HEADER_WORDS * 8;
/// Where in a message's frame the acknowledgement is.
const ACK_AT: usize = LEAD_BYTES + 8;
/// Bytes of the longest frame.
pub const MAX_FRAME_BYTES: usize = LEAD_BYTES + MESSAGE_BYTES + Sender::MAX_BODY;

const HELLO: u8 = 1;
const MESSAGE: u8 = 2;
const ACK: u8 = 3;

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The first one of a stream.
    Hello {
        /// Whose link it is.
        origin: OriginId,
        /// What the sender of this frame wants next.
        next: u64,
    },
    /// A message.
    Message {
        /// Its number.
        number: u64,
        /// What its sender has taken: everything before this number.
        acknowledged: u64,
        /// Its header, whose length is the body's.
        header: Header,
        /// Its body.
        body: &'a [u8],
    },
    /// What its sender has taken: everything before this number.
    Ack(u64),
}

/// What came is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the tunnel sends what is no frame: is it of another version?")]
pub struct Malformed;

/// Reads the first frame of `bytes`, and how long it is; `None` if it is not complete. Any input is fine.
///
/// # Errors
/// [`Malformed`].
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some((&[kind, version, zero, nil, ..], _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if version != VERSION || zero != 0 || nil != 0 {
        return Err(Malformed);
    }
    let Some(length) = bytes[4..].first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    let fits = match kind {
        HELLO => length == HELLO_BYTES,
        MESSAGE => (MESSAGE_BYTES..=MAX_FRAME_BYTES - LEAD_BYTES).contains(&length),
        ACK => length == ACK_BYTES,
        _ => false,
    };
    if !fits {
        return Err(Malformed);
    }
    let Some(content) = bytes.get(LEAD_BYTES..LEAD_BYTES + length) else { return Ok(None) };
    let frame = match kind {
        HELLO => {
            let (origin, next) = content.split_first_chunk::<16>().ok_or(Malformed)?;
            Frame::Hello { origin: OriginId(*origin), next: word(next, 0)? }
        }
        ACK => Frame::Ack(word(content, 0)?),
        _ => {
            let body = &content[MESSAGE_BYTES..];
            let words = [word(content, 2)?, word(content, 3)?, word(content, 4)?];
            let header = Header::decode(words).filter(|header| header.len as usize == body.len());
            Frame::Message {
                number: word(content, 0)?,
                acknowledged: word(content, 1)?,
                header: header.ok_or(Malformed)?,
                body,
            }
        }
    };
    Ok(Some((frame, LEAD_BYTES + length)))
}

fn word(bytes: &[u8], index: usize) -> Result<u64, Malformed> {
    let word = bytes.get(index * 8..).and_then(|rest| rest.first_chunk::<8>()).ok_or(Malformed)?;
    Ok(u64::from_le_bytes(*word))
}

fn lead(kind: u8, length: usize) -> [u8; LEAD_BYTES] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind, VERSION, 0, 0, a, b, c, d]
}

/// A Hello in bytes.
pub fn hello(origin: OriginId, next: u64) -> Vec<u8> {
    [&lead(HELLO, HELLO_BYTES)[..], &origin.0, &next.to_le_bytes()].concat()
}

/// An acknowledgement in bytes.
pub fn ack(acknowledged: u64) -> Vec<u8> {
    [lead(ACK, ACK_BYTES), acknowledged.to_le_bytes()].concat()
}

/// A message in bytes, whose acknowledgement [`stamp`] fills in.
pub fn message(number: u64, header: Header, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LEAD_BYTES + MESSAGE_BYTES + body.len());
    frame.extend_from_slice(&lead(MESSAGE, MESSAGE_BYTES + body.len()));
    let words = Header { len: body.len() as u32, ..header }.encode();
    for word in [number, 0].into_iter().chain(words) {
        frame.extend_from_slice(&word.to_le_bytes());
    }
    frame.extend_from_slice(body);
    frame
}

/// Fills an acknowledgement into the message that `frame` begins with.
pub fn stamp(frame: &mut [u8], acknowledged: u64) {
    frame[ACK_AT..ACK_AT + 8].copy_from_slice(&acknowledged.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_abi::message::Kind;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_a_round_trip_and_are_awaited_byte_by_byte() {
        let header = Header::new(Kind::SocketData, 3).stream(7).arg(9);
        let mut message = message(5, header, b"body");
        stamp(&mut message, 8);
        let origin = OriginId([7; 16]);
        let header = Header { len: 4, ..header };
        for (bytes, frame) in [
            (hello(origin, 4), Frame::Hello { origin, next: 4 }),
            (ack(6), Frame::Ack(6)),
            (message, Frame::Message { number: 5, acknowledged: 8, header, body: b"body" }),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(decode(&[&bytes[..], b"rest"].concat()), Ok(Some((frame, bytes.len()))));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0u8..5, len in 0u32..80) {
            let _ = decode(&bytes);
            let near = [&[kind, VERSION, 0, 0][..], &len.to_le_bytes(), &bytes].concat();
            if let Ok(Some((_, used))) = decode(&near) {
                prop_assert!(used <= near.len());
            }
        }
    }
}
