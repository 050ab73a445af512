//! What a hostile client or node may do to a connection: it ends with an error of a name, or goes on unharmed.

mod common;

use common::*;
use nacre_tls::connection::MAX_HELLO_BYTES;
use nacre_tls::{Nonce, Read, TlsConnection, TlsError, TlsIdentity, TlsServer, TlsState};
use proptest::prelude::*;

/// Whether `error` is one that changed or invented bytes may lead to.
fn is_refusal(error: &TlsError) -> bool {
    match error {
        TlsError::Malformed
        | TlsError::HelloTooLong
        | TlsError::Incompatible
        | TlsError::Misbehaved
        | TlsError::Forged
        | TlsError::TooLong
        | TlsError::PeerAlert(_)
        | TlsError::Truncated => true,
        TlsError::NoEvidence
        | TlsError::NotWaiting
        | TlsError::WriteClosed
        | TlsError::NoRandomness
        | TlsError::Internal => false,
    }
}

#[test]
fn what_is_cut_off_is_not_an_end() {
    let (mut client, mut server) = connected();
    let wire = sealed(&mut client, b"transfer 100");
    to_server(&mut server, &wire).unwrap();
    let cut_in_record = sealed(&mut client, b"0 more");
    to_server(&mut server, &cut_in_record[..10]).unwrap();
    server.end_of_ciphertext();
    let mut target = [0; 100];
    assert_eq!(server.read_plaintext(&mut target), Ok(Read::Bytes(12)), "what came is read first");
    assert_eq!(server.read_plaintext(&mut target), Err(TlsError::Truncated));
    assert_eq!(server.read_plaintext(&mut target), Err(TlsError::Truncated), "and it stays so");
    assert_eq!(server.write_plaintext(b"x"), Err(TlsError::Truncated));

    // In every state.
    let mut fresh = connection();
    fresh.end_of_ciphertext();
    assert_eq!(fresh.state(), TlsState::Failed(TlsError::Truncated));
    let mut waiting = connection();
    waiting.feed(&from_client(&mut common::client(nonce()))).unwrap();
    waiting.end_of_ciphertext();
    let asked = waiting.needs_evidence().unwrap();
    assert_eq!(waiting.provide_evidence(&certificate(&asked)), Err(TlsError::Truncated));
    let (_, mut idle) = connected();
    idle.end_of_ciphertext();
    assert_eq!(idle.read_plaintext(&mut target), Err(TlsError::Truncated));
}

/// Every byte of every record of the client's, changed in one bit.
#[test]
fn a_flipped_bit_ends_the_connection() {
    let bits = [0, 3, 7];
    // Of the hello: whatever is negotiated with a changed hello, the handshake does not end well.
    let length = from_client(&mut client(nonce())).len();
    for at in 0..length {
        // But for the version in a plain record's header, which means nothing (RFC 8446, 5.1).
        if at == 1 || at == 2 {
            continue;
        }
        let (mut client, mut server) = (client(nonce()), connection());
        let mut hello = from_client(&mut client);
        hello[at] ^= 1 << bits[at % 3];
        let mut outcome = to_server(&mut server, &hello);
        for _ in 0..3 {
            // A client that sees its server's answer to another hello does not go on.
            if to_client(&mut client, &from_server(&mut server)).is_err() || outcome.is_err() {
                break;
            }
            outcome = to_server(&mut server, &from_client(&mut client));
        }
        assert_ne!(server.state(), TlsState::Open, "byte {at} of the hello");
        assert!(client.is_handshaking() || outcome.is_err(), "byte {at} of the hello");
        if let Err(error) = outcome {
            assert!(is_refusal(&error), "byte {at} of the hello: {error:?}");
        }
    }
    // Of the client's finished, and of application data.
    for data in [false, true] {
        let mut at = 0;
        loop {
            let (mut client, mut server) = (client(nonce()), connection());
            to_server(&mut server, &from_client(&mut client)).unwrap();
            to_client(&mut client, &from_server(&mut server)).unwrap();
            let mut wire = from_client(&mut client);
            if data {
                to_server(&mut server, &wire).unwrap();
                wire = sealed(&mut client, b"attack at dawn");
            }
            let (framing, lengths) = framing(&wire);
            let Some(byte) = wire.get_mut(at) else { break };
            *byte ^= 1 << bits[at % 3];
            let outcome = to_server(&mut server, &wire);
            let read = server.read_plaintext(&mut [0; 100]);
            server.end_of_ciphertext();
            match outcome {
                Err(error) => assert!(is_refusal(&error) && read.is_err(), "byte {at}: {error:?}"),
                Ok(()) if framing.contains(&at) => assert!(!data || read == Ok(Read::Bytes(14)), "byte {at}"),
                // A longer record is waited for.
                Ok(()) => {
                    assert!(lengths.contains(&at) && read == Ok(Read::Nothing), "byte {at} went unnoticed");
                    assert_eq!(server.state(), TlsState::Failed(TlsError::Truncated));
                }
            }
            at += 1;
        }
        assert!(at > 30, "{at}");
    }
}

/// Places in `records` of what means nothing in TLS 1.3 (outer type and version: what they should be is what is
/// authenticated), and of lengths.
fn framing(records: &[u8]) -> (Vec<usize>, Vec<usize>) {
    let (mut nothing, mut lengths, mut at) = (Vec::new(), Vec::new(), 0);
    while at < records.len() {
        nothing.extend(at..at + 3);
        lengths.extend(at + 3..at + 5);
        at += 5 + usize::from(u16::from_be_bytes([records[at + 3], records[at + 4]]));
    }
    (nothing, lengths)
}

#[test]
fn repeated_dropped_and_reordered_records_are_forged() {
    for order in [&[0, 0][..], &[1], &[1, 0], &[0, 2]] {
        let (mut client, mut server) = connected();
        let records: Vec<_> = (0..3u8).map(|index| sealed(&mut client, &[index; 20])).collect();
        let mut outcome = Ok(());
        let mut read = Vec::new();
        for index in order {
            outcome = outcome.and_then(|()| to_server(&mut server, &records[*index]));
            if outcome.is_ok() {
                read.extend(read_server(&mut server));
            }
        }
        assert_eq!(outcome, Err(TlsError::Forged), "{order:?}");
        assert_eq!(read.len(), if order[0] == 0 { 20 } else { 0 });
        // The client learns of it: an alert is there, and the connection is over when it was taken.
        assert!(!server.finished());
        let alert = from_server(&mut server);
        assert!(to_client(&mut client, &alert).is_err());
        assert!(server.finished());
    }
}

/// Not with debug assertions: rustls 0.23.46 has one that takes a close_notify for a fatal alert, and then wonders at
/// the second.
#[cfg(not(debug_assertions))]
#[test]
fn after_our_close_a_forged_record_is_an_error_and_no_alert() {
    let (mut client, mut server) = connected();
    server.close().unwrap();
    from_server(&mut server);
    let mut wire = sealed(&mut client, b"still here");
    to_server(&mut server, &wire).unwrap();
    wire = sealed(&mut client, b"and now");
    wire[9] ^= 1;
    assert_eq!(read_server(&mut server), b"still here");
    assert_eq!(to_server(&mut server, &wire), Err(TlsError::Forged));
    assert!(server.ciphertext().is_empty() && server.finished());
}

#[test]
fn nothing_but_tls_is_malformed() {
    for text in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        &[0; 600],
        &[0xff; 600],
        b"SSH-2.0-x\r\n",
    ] {
        let mut server = connection();
        let error = server.feed(text).unwrap_err();
        assert!(is_refusal(&error), "{error:?}");
        assert_eq!(server.feed(b"x").unwrap_err(), error, "an error stays");
    }
}

#[test]
fn tls_1_2_is_refused() {
    let mut hello = from_client(&mut client(nonce()));
    // The extension supported_versions (43) gets a number that nobody knows: what is left is a hello of TLS 1.2.
    let at = hello.windows(6).position(|window| window == [0, 43, 0, 3, 2, 3]).expect("supported_versions");
    hello[at..at + 2].copy_from_slice(&[0xfa, 0xfa]);
    let mut server = connection();
    assert_eq!(server.feed(&hello), Err(TlsError::Incompatible));
    let alert = from_server(&mut server);
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70], "a plain alert: protocol_version");
}

/// A handshake message of `length` zeros after its header, framed in records of `record` bytes.
fn long_hello(length: usize, record: usize) -> Vec<u8> {
    let mut message = vec![1, (length >> 16) as u8, (length >> 8) as u8, length as u8];
    message.resize(4 + length, 0);
    message
        .chunks(record)
        .flat_map(|part| [&[22, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat())
        .collect()
}

#[test]
fn a_hello_has_a_longest_size() {
    for (length, record) in [(60_000, 16_384), (60_000, 1), (16 << 20, 16_384), (MAX_HELLO_BYTES, 16_384)] {
        let mut server = connection();
        let length = length.min((1 << 24) - 1);
        let error = to_server(&mut server, &long_hello(length, record)).unwrap_err();
        assert!(
            matches!(error, TlsError::HelloTooLong | TlsError::TooLong),
            "{length} by {record}: {error:?}"
        );
        assert!(server.memory_bytes() < 3 * MAX_HELLO_BYTES, "{}", server.memory_bytes());
    }
    // In small pieces it is as good as in one.
    let (asked, mut server) = (nonce(), connection());
    let hello = from_client(&mut client(asked));
    let pieces: Vec<u8> =
        hello[5..].chunks(3).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat()).collect();
    server.feed(&pieces).unwrap();
    assert_eq!(server.needs_evidence(), Some(asked));
    server.provide_evidence(&certificate(&asked)).unwrap();
    assert_eq!(server.state(), TlsState::Handshake);
}

#[test]
fn a_record_has_a_longest_size() {
    let (_, mut server) = connected();
    let record = [&[23, 3, 3, 0xff, 0xff][..], &[0; 30_000]].concat();
    assert!(is_refusal(&server.feed(&record).unwrap_err()));
    let (_, mut server) = connected();
    let record = [&[23, 3, 3, 0x48, 0x01][..], &[0; 20_000]].concat();
    assert!(is_refusal(&server.feed(&record).unwrap_err()));
}

#[test]
fn without_randomness_nothing_is_said() {
    struct Broken;
    impl nacre_tls::Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), nacre_tls::NoRandomness> {
            Err(nacre_tls::NoRandomness)
        }
    }
    static BROKEN: nacre_tls::Crypto = nacre_tls::Crypto::new(&Broken);
    assert_eq!(TlsIdentity::generate(&BROKEN).unwrap_err(), nacre_tls::IdentityError::NoRandomness);
    let server = TlsServer::new(&BROKEN, certificate(&Nonce::ZERO));
    let error = match TlsConnection::new(&server) {
        Ok(mut connection) => {
            let error = to_server(&mut connection, &from_client(&mut client(nonce()))).unwrap_err();
            assert!(!connection.ciphertext().starts_with(&[22]), "no server hello");
            error
        }
        Err(error) => error,
    };
    assert_eq!(error, TlsError::NoRandomness);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes in whatever state: an error with a name, or it waits; memory is bounded.
    #[test]
    fn garbage_does_no_harm(
        state in 0usize..4,
        header in prop::option::of((20u8..25, 0u16..18_500)),
        garbage in prop::collection::vec(any::<u8>(), 0..3000),
        piece in 1usize..500,
    ) {
        let (mut client, mut server) = (client(nonce()), connection());
        if state > 0 {
            server.feed(&from_client(&mut client)).unwrap();
        }
        if state > 1 {
            let asked = server.needs_evidence().unwrap();
            server.provide_evidence(&certificate(&asked)).unwrap();
        }
        if state > 2 {
            handshake(&mut client, &mut server);
        }
        let mut bytes = garbage;
        if let Some((kind, length)) = header {
            bytes.splice(0..0, [kind, 3, 3, (length >> 8) as u8, length as u8]);
        }
        for part in bytes.chunks(piece) {
            match server.feed(part) {
                Ok(_) => prop_assert!(!matches!(server.state(), TlsState::Failed(_))),
                Err(error) => prop_assert!(is_refusal(&error), "{:?}", error),
            }
            prop_assert!(!matches!(server.read_plaintext(&mut [0; 10]), Ok(Read::Bytes(_) | Read::End)));
        }
        prop_assert!(server.memory_bytes() < 200_000);
    }
}
