//! Conversations that go well, with rustls as the client.

mod common;

use common::*;
use nacre_tls::connection::{INCOMING_BYTES, MAX_HELLO_BYTES, OUTGOING_BYTES};
use nacre_tls::{Nonce, Read, TlsConnection, TlsError, TlsState};
use proptest::prelude::*;
use std::io::{Read as _, Write as _};

#[test]
fn a_client_that_names_a_nonce_gets_evidence_for_it() {
    let (asked, mut server) = (nonce(), connection());
    let mut client = client(asked);
    assert_eq!(server.state(), TlsState::Hello);
    let hello = from_client(&mut client);
    assert_eq!(server.feed(&hello).unwrap(), hello.len());
    assert_eq!(server.state(), TlsState::NeedsEvidence(asked));
    assert_eq!(server.ciphertext(), b"", "nothing is said before there is evidence");
    // What comes meanwhile waits outside.
    assert_eq!(server.feed(b"more").unwrap(), 0);
    assert_eq!(server.write_plaintext(b"early").unwrap(), 0);
    server.provide_evidence(&certificate(&asked)).unwrap();
    assert_eq!(server.state(), TlsState::Handshake);
    assert_eq!(server.provide_evidence(&certificate(&asked)), Err(TlsError::NotWaiting));
    handshake(&mut client, &mut server);

    let sent = sealed(&mut client, b"ping");
    to_server(&mut server, &sent).unwrap();
    assert!(server.readable());
    assert_eq!(read_server(&mut server), b"ping");
    assert!(!server.readable());
    assert_eq!(server.write_plaintext(b"pong").unwrap(), 4);
    to_client(&mut client, &from_server(&mut server)).unwrap();
    assert_eq!(read_client(&mut client), b"pong");
}

#[test]
fn without_a_nonce_the_default_certificate_is_shown() {
    let asked = nonce();
    let config = nacre_tls::client::config(asked, |_| Ok(())).unwrap();
    let name = rustls::pki_types::ServerName::try_from("kv.example").unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut server = connection();
    to_server(&mut server, &from_client(&mut client)).unwrap();
    assert_eq!(server.state(), TlsState::Handshake);
    // A client that wants fresh evidence does not go on with this.
    let error = to_client(&mut client, &from_server(&mut server)).unwrap_err();
    assert!(error.to_string().contains("OtherName"), "{error}");
    let alert = from_client(&mut client);
    assert!(matches!(to_server(&mut server, &alert), Err(TlsError::PeerAlert(_))));
}

#[test]
fn evidence_for_another_nonce_is_seen_by_the_client() {
    for wrong in [Nonce::ZERO, nonce()] {
        let mut client = client(nonce());
        let mut server = connection();
        server.feed(&from_client(&mut client)).unwrap();
        server.provide_evidence(&certificate(&wrong)).unwrap();
        let error = to_client(&mut client, &from_server(&mut server)).unwrap_err();
        assert!(error.to_string().contains("another nonce or key"), "{error}");
    }
}

#[test]
fn evidence_of_another_key_is_seen_by_the_client() {
    let asked = nonce();
    let other = nacre_tls::TlsIdentity::generate(&CRYPTO).unwrap();
    // A host with a key of its own and somebody's good evidence.
    let forged = other.certificate(&evidence(&asked, identity().spki_sha256())).unwrap();
    let mut client = client(asked);
    let mut server = connection();
    server.feed(&from_client(&mut client)).unwrap();
    server.provide_evidence(&forged).unwrap();
    let error = to_client(&mut client, &from_server(&mut server)).unwrap_err();
    assert!(error.to_string().contains("another nonce or key"), "{error}");
}

#[test]
fn a_stolen_certificate_without_its_key_is_of_no_use() {
    // The certificate of the CVM, shown by a server with another key: rustls' own server, on the client's side of
    // the node.
    let asked = nonce();
    let der = rustls::pki_types::CertificateDer::from(certificate(&asked).der().to_vec());
    let key = p256_key_of_somebody_else();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::new(vec![der], provider.key_provider.load_private_key(key).unwrap()),
        )));
    let mut server = rustls::ServerConnection::new(config.into()).unwrap();
    let mut client = client(asked);
    server.read_tls(&mut &from_client(&mut client)[..]).unwrap();
    server.process_new_packets().unwrap();
    let mut flight = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut flight).unwrap();
    }
    let error = to_client(&mut client, &flight).unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

fn p256_key_of_somebody_else() -> rustls::pki_types::PrivateKeyDer<'static> {
    use p256::pkcs8::EncodePrivateKey;
    let key = p256::SecretKey::from_slice(&[7; 32]).unwrap();
    rustls::pki_types::PrivatePkcs8KeyDer::from(key.to_pkcs8_der().unwrap().as_bytes().to_vec()).into()
}

#[test]
fn the_longest_evidence_fits_and_a_longer_one_is_refused() {
    let asked = nonce();
    let longest = pattern(nacre_tls::identity::MAX_EVIDENCE_BYTES);
    let expected = longest.clone();
    let config = nacre_tls::client::config(asked, move |shown| match shown.evidence == expected {
        true => Ok(()),
        false => Err("other evidence".into()),
    });
    let name = nacre_tls::client::server_name(&asked).unwrap();
    let mut client = rustls::ClientConnection::new(config.unwrap().into(), name).unwrap();
    let mut server = connection();
    server.feed(&from_client(&mut client)).unwrap();
    server.provide_evidence(&identity().certificate(&longest).unwrap()).unwrap();
    handshake(&mut client, &mut server);
    server.trim();
    assert!(server.memory_bytes() < 1024, "{} bytes", server.memory_bytes());
    let longer = vec![0; longest.len() + 1];
    assert_eq!(
        identity().certificate(&longer).unwrap_err(),
        nacre_tls::IdentityError::EvidenceTooLong(longer.len())
    );
}

#[test]
fn byte_by_byte_is_as_good_as_at_once() {
    let (mut client, mut server) = (client(nonce()), connection());
    for _ in 0..4 {
        for byte in from_client(&mut client) {
            to_server(&mut server, &[byte]).unwrap();
        }
        let mut byte = [0];
        while server.take_ciphertext(&mut byte) > 0 {
            to_client(&mut client, &byte).unwrap();
        }
    }
    assert_eq!(server.state(), TlsState::Open);
    let text = pattern(20_000);
    let mut read = Vec::new();
    for byte in sealed(&mut client, &text) {
        to_server(&mut server, &[byte]).unwrap();
        read.extend(read_server(&mut server));
    }
    assert_eq!(read, text);
    let mut taken = 0;
    let mut byte = [0];
    while taken < text.len() {
        taken += server.write_plaintext(&text[taken..]).unwrap();
        while server.take_ciphertext(&mut byte) > 0 {
            to_client(&mut client, &byte).unwrap();
        }
    }
    assert_eq!(read_client(&mut client), text);
}

/// Echoes `text` through the server with bounded memory, whatever the sizes of the pieces.
fn echo(text: &[u8], mut pieces: impl FnMut() -> usize) {
    let (mut client, mut server) = connected();
    client.set_buffer_limit(Some(64 << 10));
    let (mut sent, mut back, mut wire) = (0, Vec::new(), Vec::new());
    let mut held: Vec<u8> = Vec::new();
    let mut rounds = 0;
    while back.len() < text.len() {
        rounds += 1;
        assert!(rounds < 4 * text.len() + 1000, "no progress at {} of {}", back.len(), text.len());
        let piece = pieces().min(text.len() - sent);
        sent += client.writer().write(&text[sent..sent + piece]).unwrap();
        wire.extend(from_client(&mut client));
        let taken = server.feed(&wire[..pieces().min(wire.len())]).unwrap();
        wire.drain(..taken);
        let mut part = vec![0; pieces()];
        if held.len() < 100_000
            && let Read::Bytes(count) = server.read_plaintext(&mut part).unwrap()
        {
            held.extend_from_slice(&part[..count]);
        }
        let written = server.write_plaintext(&held[..pieces().min(held.len())]).unwrap();
        held.drain(..written);
        let count = server.take_ciphertext(&mut part);
        back.extend(opened(&mut client, &part[..count]));
        let most = INCOMING_BYTES + OUTGOING_BYTES + (16 << 10) + 1024;
        assert!(server.memory_bytes() <= 2 * most, "{} bytes", server.memory_bytes());
    }
    assert_eq!(back, text);
}

#[test]
fn much_goes_through() {
    let text = pattern(16 << 20);
    let mut size = 1;
    echo(&text, || {
        size = size * 7 % 100_003 + 1;
        size
    });
}

#[test]
fn more_than_is_taken_waits() {
    let (_, mut server) = connected();
    let text = pattern(1 << 20);
    let taken = server.write_plaintext(&text).unwrap();
    assert!((16 << 10..=OUTGOING_BYTES).contains(&taken), "{taken}");
    assert_eq!(server.write_plaintext(&text[taken..]).unwrap(), 0);
    assert!(server.ciphertext().len() <= OUTGOING_BYTES + 100);
    from_server(&mut server);
    assert!(server.write_plaintext(&text[taken..]).unwrap() > 0);
}

#[test]
fn plaintext_that_nobody_reads_holds_the_client_up_and_not_the_writer() {
    let (mut client, mut server) = connected();
    let text = pattern(200_000);
    let mut wire = Vec::new();
    for part in text.chunks(30_000) {
        wire.extend(sealed(&mut client, part));
    }
    let mut taken = server.feed(&wire).unwrap();
    assert!(taken < INCOMING_BYTES + (17 << 10), "{taken}");
    assert_eq!(server.feed(&wire[taken..]).unwrap(), 0);
    // Reading is held up; writing and closing are not.
    assert_eq!(server.write_plaintext(b"busy").unwrap(), 4);
    server.close().unwrap();
    to_client(&mut client, &from_server(&mut server)).unwrap();
    assert_eq!(read_client(&mut client), b"busy");
    let mut read = Vec::new();
    while read.len() < text.len() {
        read.extend(read_server(&mut server));
        taken += server.feed(&wire[taken..]).unwrap();
    }
    assert_eq!(read, text);
}

#[test]
fn each_side_closes_by_itself() {
    // The client first: the server may go on.
    let (mut client, mut server) = connected();
    client.writer().write_all(b"last").unwrap();
    client.send_close_notify();
    let wire = from_client(&mut client);
    to_server(&mut server, &wire).unwrap();
    assert_eq!(read_server(&mut server), b"last");
    assert_eq!(server.read_plaintext(&mut [0; 9]).unwrap(), Read::End);
    server.end_of_ciphertext();
    assert_eq!(server.read_plaintext(&mut [0; 9]).unwrap(), Read::End);
    assert_eq!(server.write_plaintext(b"not yet").unwrap(), 7);
    server.close().unwrap();
    assert_eq!(server.write_plaintext(b"x"), Err(TlsError::WriteClosed));
    assert!(!server.finished(), "there is ciphertext to take");
    to_client(&mut client, &from_server(&mut server)).unwrap();
    assert_eq!(read_client(&mut client), b"not yet");
    assert_eq!(client.reader().read(&mut [0; 9]).unwrap(), 0, "the end in order");
    assert!(server.finished());

    // The server first: the client may go on.
    let (mut client, mut server) = connected();
    server.write_plaintext(b"bye").unwrap();
    server.close().unwrap();
    server.close().unwrap();
    to_client(&mut client, &from_server(&mut server)).unwrap();
    assert_eq!(read_client(&mut client), b"bye");
    to_server(&mut server, &sealed(&mut client, b"and now?")).unwrap();
    assert_eq!(read_server(&mut server), b"and now?");
    assert!(!server.peer_closed() && !server.finished());
    client.send_close_notify();
    to_server(&mut server, &from_client(&mut client)).unwrap();
    assert_eq!(server.read_plaintext(&mut [0; 9]).unwrap(), Read::End);
    assert!(server.finished());
}

#[test]
fn closing_before_the_handshake_is_over_happens_after_it() {
    let (mut client, mut server) = (client(nonce()), connection());
    server.close().unwrap();
    for _ in 0..4 {
        to_server(&mut server, &from_client(&mut client)).unwrap();
        to_client(&mut client, &from_server(&mut server)).unwrap();
    }
    assert_eq!(client.reader().read(&mut [0; 9]).unwrap(), 0, "the end in order");
}

#[test]
fn refused_evidence_is_an_alert() {
    let (mut client, mut server) = (client(nonce()), connection());
    assert_eq!(server.refuse_evidence(), Err(TlsError::NotWaiting));
    server.feed(&from_client(&mut client)).unwrap();
    server.refuse_evidence().unwrap();
    assert_eq!(server.state(), TlsState::Failed(TlsError::NoEvidence));
    let error = to_client(&mut client, &from_server(&mut server)).unwrap_err();
    assert!(matches!(error, rustls::Error::AlertReceived(_)), "{error}");
    assert!(server.finished());
}

#[test]
fn keys_are_updated_when_the_client_wants_it() {
    let (mut client, mut server) = connected();
    for round in 0..20u8 {
        client.refresh_traffic_keys().unwrap();
        let wire = sealed(&mut client, &[round; 100]);
        to_server(&mut server, &wire).unwrap();
        assert_eq!(read_server(&mut server), [round; 100]);
        assert_eq!(server.write_plaintext(&[round; 50]).unwrap(), 50);
        to_client(&mut client, &from_server(&mut server)).unwrap();
        assert_eq!(read_client(&mut client), [round; 50]);
    }
}

#[test]
fn many_connections_do_not_mix() {
    let server = server();
    let mut pairs: Vec<_> = (0..50)
        .map(|_| {
            let asked = nonce();
            (client(asked), TlsConnection::new(&server).unwrap())
        })
        .collect();
    for _ in 0..4 {
        for (client, server) in &mut pairs {
            to_server(server, &from_client(client)).unwrap();
        }
        for (client, server) in pairs.iter_mut().rev() {
            to_client(client, &from_server(server)).unwrap();
        }
    }
    for round in 0..5 {
        for (index, (client, server)) in pairs.iter_mut().enumerate() {
            let text = format!("{index} says {round}");
            to_server(server, &sealed(client, text.as_bytes())).unwrap();
        }
        for (index, (client, server)) in pairs.iter_mut().enumerate().rev() {
            let text = read_server(server);
            assert_eq!(text, format!("{index} says {round}").as_bytes());
            server.write_plaintext(&text).unwrap();
            to_client(client, &from_server(server)).unwrap();
            assert_eq!(read_client(client), text);
        }
    }
    let bytes: usize = pairs.iter().map(|(_, server)| server.memory_bytes()).sum();
    assert!(bytes < 50 * MAX_HELLO_BYTES, "{bytes} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_pieces_carry_any_text(length in 0usize..120_000, sizes in prop::collection::vec(1usize..40_000, 1..40)) {
        let mut next = sizes.iter().cycle();
        echo(&pattern(length), || *next.next().unwrap());
    }
}
