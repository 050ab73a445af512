//! Records of one connection, with real cryptography.

use crate::crypto::{HkdfRoot, Root};
use crate::link::{Link, MAX_RECORDS, RESUME_FRAME_BYTES, RecordError};
use crate::message::Message;
use crate::wire::{CONTROL_BYTES, Connection, End, FrameError, HEADER_BYTES, Kind, MigrationId, TAG_BYTES};
use std::vec::Vec;

const ID: MigrationId = MigrationId([7; 16]);
const FRAME: usize = HEADER_BYTES + CONTROL_BYTES + TAG_BYTES;

type RealLink = Link<crate::crypto::GcmKey>;

fn ends() -> (HkdfRoot, RealLink, RealLink) {
    let root = HkdfRoot::from_bytes(&[3; 32]);
    let link = |own| Link::new(&root, ID, own, Connection::Control);
    let (source, destination) = (link(End::Source), link(End::Destination));
    (root, source, destination)
}

fn sealed(link: &mut RealLink) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[HEADER_BYTES..HEADER_BYTES + CONTROL_BYTES].copy_from_slice(&Message::Ready.encode());
    assert_eq!(link.seal(Kind::Control, &mut frame, CONTROL_BYTES), Ok(FRAME));
    frame
}

fn open(link: &mut RealLink, frame: &[u8]) -> Result<Vec<u8>, RecordError> {
    link.open(&mut frame.to_vec()).map(|(_, text)| text.to_vec())
}

#[test]
fn records_arrive_once_and_in_order() {
    let (_, mut source, mut destination) = ends();
    let frames = [0; 3].map(|_| sealed(&mut source));
    assert_eq!(open(&mut destination, &frames[1]), Err(RecordError::OutOfOrder { found: 1, next: 0 }));
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(open(&mut destination, frame), Ok(Message::Ready.encode().to_vec()));
        assert_eq!(open(&mut destination, frame), Err(RecordError::Replayed { found: number as u64 }));
    }
    assert_eq!(open(&mut source, &frames[0]), Err(RecordError::OtherConnection), "its own come back");
}

#[test]
fn every_changed_byte_is_noticed_and_changes_nothing() {
    let (_, mut source, mut destination) = ends();
    let frame = sealed(&mut source);
    for at in 0..FRAME {
        let mut changed = frame;
        changed[at] ^= 1;
        assert!(open(&mut destination, &changed).is_err(), "byte {at}");
        assert!(open(&mut destination, &frame[..at]).is_err(), "cut at {at}");
    }
    let longer = [&frame[..], &[0]].concat();
    assert_eq!(open(&mut destination, &longer), Err(FrameError::Trailing.into()));
    assert!(open(&mut destination, &frame).is_ok());
}

#[test]
fn another_migration_connection_or_epoch_has_other_keys() {
    let (root, mut source, _) = ends();
    let frame = sealed(&mut source);
    let mut other = Link::new(&root, MigrationId([8; 16]), End::Destination, Connection::Control);
    assert_eq!(open(&mut other, &frame), Err(RecordError::OtherMigration { found: ID }));
    let mut demand = Link::new(&root, ID, End::Destination, Connection::Demand);
    assert_eq!(open(&mut demand, &frame), Err(RecordError::OtherConnection));
    let secret = HkdfRoot::from_bytes(&[4; 32]);
    let mut stranger = Link::new(&secret, ID, End::Destination, Connection::Control);
    assert_eq!(open(&mut stranger, &frame), Err(RecordError::Forged));
}

#[test]
fn a_connection_goes_on_in_an_epoch_that_both_ends_agree_to() {
    let (root, mut source, mut destination) = ends();
    let old = sealed(&mut source);
    let proposals: [[u8; RESUME_FRAME_BYTES]; 2] =
        [0; 2].map(|_| source.propose(&root).expect("there are epochs"));
    let mut frame = [0; FRAME];
    assert_eq!(source.seal(Kind::Control, &mut frame, CONTROL_BYTES), Err(RecordError::NotAgreed));
    // The first answer is lost.
    let lost = destination.follow(&root, &mut proposals[0].clone()).expect("it is authentic");
    let answer = destination.follow(&root, &mut proposals[1].clone()).expect("it is newer");
    for proposal in proposals {
        let again = destination.follow(&root, &mut proposal.clone());
        assert!(matches!(again, Err(RecordError::OtherEpoch { current: 2, .. })), "no epoch comes back");
    }
    assert_eq!(open(&mut destination, &old), Err(RecordError::OtherEpoch { found: 0, current: 2 }));
    assert!(source.agreed(&mut lost.clone()).is_err());
    source.agreed(&mut answer.clone()).expect("it is the answer");
    let frame = sealed(&mut source);
    assert!(open(&mut destination, &frame).is_ok());
    assert_eq!((source.epoch(), destination.epoch()), (2, 2));
    let mut forged = source.propose(&root).expect("there are epochs");
    forged[RESUME_FRAME_BYTES - 1] ^= 1;
    assert_eq!(destination.follow(&root, &mut forged), Err(RecordError::Forged));
    assert_eq!(destination.epoch(), 2, "a forgery moves nothing");
}

#[test]
fn numbers_end() {
    let (_, mut source, _) = ends();
    source.set_sent(MAX_RECORDS - 1);
    sealed(&mut source);
    let mut frame = [0; FRAME];
    assert_eq!(source.seal(Kind::Control, &mut frame, CONTROL_BYTES), Err(RecordError::Exhausted));
}

#[test]
fn a_frame_that_the_other_end_would_refuse_is_not_sealed() {
    let (_, mut source, mut destination) = ends();
    let mut frame = [0; FRAME];
    for (kind, plain) in [(Kind::Data, 64), (Kind::Control, 63), (Kind::Commit, 32)] {
        assert!(source.seal(kind, &mut frame, plain).is_err() || kind == Kind::Commit, "{kind:?}");
    }
    assert!(matches!(source.seal(Kind::Control, &mut frame[..80], CONTROL_BYTES), Err(RecordError::Buffer)));
    let frame = sealed(&mut destination);
    assert!(open(&mut source, &frame).is_ok());
}
