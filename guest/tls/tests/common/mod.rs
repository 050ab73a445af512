//! What the tests of connections have in common: randomness, an identity, and both ends in memory.

#![allow(dead_code, missing_docs)]

use nacre_tls::{
    Certificate, Crypto, NoRandomness, Nonce, Random, Read, TlsConnection, TlsError, TlsIdentity, TlsServer,
    TlsState, client,
};
use rustls::ClientConnection;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, OnceLock};

pub struct System;

impl Random for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        getrandom::fill(bytes).map_err(|_| NoRandomness)
    }
}

pub static CRYPTO: Crypto = Crypto::new(&System);

pub fn identity() -> &'static TlsIdentity {
    static IDENTITY: OnceLock<TlsIdentity> = OnceLock::new();
    IDENTITY.get_or_init(|| TlsIdentity::generate(&CRYPTO).unwrap())
}

pub fn nonce() -> Nonce {
    Nonce::random(&System).unwrap()
}

/// Stands for evidence: which nonce and key it is for.
pub fn evidence(nonce: &Nonce, key: [u8; 32]) -> Vec<u8> {
    [b"evidence ".as_slice(), nonce.bytes(), &key].concat()
}

pub fn certificate(nonce: &Nonce) -> Certificate {
    identity().certificate(&evidence(nonce, identity().spki_sha256())).unwrap()
}

pub fn server() -> TlsServer {
    TlsServer::new(&CRYPTO, certificate(&Nonce::ZERO))
}

pub fn connection() -> TlsConnection {
    TlsConnection::new(&server()).unwrap()
}

/// A client that accepts evidence for its nonce and the key it sees only.
pub fn client(nonce: Nonce) -> ClientConnection {
    let config = client::config(nonce, |shown| {
        if shown.evidence != evidence(&shown.nonce, shown.spki_sha256) {
            return Err("evidence for another nonce or key".into());
        }
        Ok(())
    });
    ClientConnection::new(Arc::new(config.unwrap()), client::server_name(&nonce).unwrap()).unwrap()
}

/// All that the client wants to send.
pub fn from_client(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// All that the server wants to send.
pub fn from_server(server: &mut TlsConnection) -> Vec<u8> {
    let bytes = server.ciphertext().to_vec();
    server.ciphertext_sent(bytes.len());
    bytes
}

/// Gives `bytes` to the client.
pub fn to_client(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

/// Gives `bytes` to the server, which must take them all; evidence is provided when it asks.
pub fn to_server(server: &mut TlsConnection, mut bytes: &[u8]) -> Result<(), TlsError> {
    loop {
        let taken = server.feed(bytes)?;
        bytes = &bytes[taken..];
        if let Some(nonce) = server.needs_evidence() {
            server.provide_evidence(&certificate(&nonce))?;
        } else if bytes.is_empty() {
            return Ok(());
        } else {
            assert!(taken > 0, "the server takes nothing");
        }
    }
}

/// Both ends, connected.
pub fn connected() -> (ClientConnection, TlsConnection) {
    let (mut client, mut server) = (client(nonce()), connection());
    handshake(&mut client, &mut server);
    (client, server)
}

pub fn handshake(client: &mut ClientConnection, server: &mut TlsConnection) {
    for _ in 0..4 {
        to_server(server, &from_client(client)).unwrap();
        to_client(client, &from_server(server)).unwrap();
    }
    assert!(!client.is_handshaking());
    assert_eq!(server.state(), TlsState::Open);
}

/// The plaintext the server has now.
pub fn read_server(server: &mut TlsConnection) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = [0; 1000];
    while let Read::Bytes(count) = server.read_plaintext(&mut part).unwrap() {
        all.extend_from_slice(&part[..count]);
    }
    all
}

/// The plaintext the client has now.
pub fn read_client(client: &mut ClientConnection) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = [0; 1000];
    while let Ok(count @ 1..) = client.reader().read(&mut part) {
        all.extend_from_slice(&part[..count]);
    }
    all
}

/// The plaintext the client finds in `bytes`: it is read as it comes, for a client keeps little.
pub fn opened(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
        all.extend(read_client(client));
    }
    all
}

/// Ciphertext of `plaintext` from the client.
pub fn sealed(client: &mut ClientConnection, plaintext: &[u8]) -> Vec<u8> {
    client.writer().write_all(plaintext).unwrap();
    from_client(client)
}

/// Bytes that do not repeat soon.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
