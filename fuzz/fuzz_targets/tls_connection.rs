//! A TLS connection of a service, between a client and a node that do what they like.
//!
//! Input: how far an honest client goes, then steps: bytes of any kind, records framed as they should be, what the
//! honest client seals (whole, changed, cut or repeated), and calls of the program on the other side. Randomness is
//! the same in each run. Checked: no panic and no inner error; what the program reads is a beginning of what the
//! client sent, and the end is reported only if the client closed; memory stays within the limits; an error stays.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nacre_tls::client::{EvidenceVerifier, server_name};
use nacre_tls::connection::{INCOMING_BYTES, MAX_HELLO_BYTES, OUTGOING_BYTES};
use nacre_tls::{
    Certificate, Crypto, NoRandomness, Nonce, Random, Read, TlsConnection, TlsError, TlsIdentity, TlsServer,
    TlsState,
};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ClientConnection};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

#[derive(Arbitrary, Debug)]
struct Input {
    /// Messages of the handshake that go through before the steps.
    progress: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Raw(Vec<u8>),
    Record { kind: u8, body: Vec<u8> },
    Long { kind: u8, length: u16 },
    Client { length: u16, harm: Harm },
    ClientCloses,
    ClientUpdatesKeys,
    Cut,
    Provide,
    Refuse,
    Read(u16),
    Write(u16),
    Take(u16),
    Close,
    Trim,
}

#[derive(Arbitrary, Debug)]
enum Harm {
    None,
    Flip { at: u16, bit: u8 },
    Short(u8),
    Twice,
}

/// Counts: keys need not be secret here, but runs must be alike.
struct Counter(AtomicU64);

impl Random for Counter {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for byte in bytes {
            *byte = (self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8;
        }
        Ok(())
    }
}

impl rustls::crypto::SecureRandom for &'static Counter {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), rustls::crypto::GetRandomFailed> {
        Random::fill(*self, bytes).map_err(|NoRandomness| rustls::crypto::GetRandomFailed)
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Counter")
    }
}

static COUNTER: Counter = Counter(AtomicU64::new(1));
static SOURCE: &Counter = &COUNTER;
static CRYPTO: Crypto = Crypto::new(&COUNTER);
const NONCE: Nonce = Nonce::new([0x5a; 32]);

struct Fixed {
    server: TlsServer,
    certificate: Certificate,
    client: Arc<ClientConfig>,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let identity = TlsIdentity::generate(&CRYPTO).unwrap();
        let certificate = identity.certificate(b"fresh").unwrap();
        let server = TlsServer::new(&CRYPTO, identity.certificate(b"default").unwrap());
        let provider = Arc::new(CryptoProvider {
            kx_groups: CRYPTO.provider().kx_groups.clone(),
            secure_random: &SOURCE,
            ..rustls::crypto::ring::default_provider()
        });
        let verifier = EvidenceVerifier::new(NONCE, provider.clone(), |_| Ok(()));
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Fixed { server, certificate, client: client.into() }
    })
}

/// The connection and what is known about it.
struct Run {
    tls: TlsConnection,
    client: ClientConnection,
    sent: Vec<u8>,
    read: usize,
    closed: bool,
    /// The program closed its side. rustls 0.23.46 has a debug assertion that does not expect errors after that, so
    /// from then on the client is honest.
    closing: bool,
    /// Something was fed that an honest client did not send: it may only now come to be read.
    harmed: bool,
    failed: Option<TlsError>,
}

fn from_client(client: &mut ClientConnection) -> Vec<u8> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    wire
}

impl Run {
    fn note<T>(&mut self, result: Result<T, TlsError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(TlsError::NotWaiting | TlsError::WriteClosed) => None,
            Err(error) => {
                assert_ne!(error, TlsError::Internal);
                assert_ne!(error, TlsError::NoRandomness);
                assert_eq!(*self.failed.get_or_insert_with(|| error.clone()), error, "an error stays");
                assert_eq!(self.tls.state(), TlsState::Failed(error));
                None
            }
        }
    }

    fn feed(&mut self, wire: &[u8]) {
        let mut rest = wire;
        while !rest.is_empty() {
            let result = self.tls.feed(rest);
            match self.note(result) {
                None | Some(0) => return,
                Some(count) => rest = &rest[count..],
            }
            self.read(3000);
        }
    }

    fn read(&mut self, length: usize) {
        let mut target = vec![0; length];
        let result = self.tls.read_plaintext(&mut target);
        match self.note(result) {
            Some(Read::Bytes(count)) => {
                assert_eq!(target[..count], self.sent[self.read..self.read + count]);
                self.read += count;
            }
            Some(Read::End) => assert!(self.closed && self.read == self.sent.len()),
            Some(Read::Nothing) | None => {}
        }
    }

    fn client_sends(&mut self, length: u16, harm: &Harm) {
        if self.client.is_handshaking() || self.closed {
            return;
        }
        let data: Vec<u8> = (0..length).map(|index| (index ^ self.sent.len() as u16) as u8).collect();
        let count = self.client.writer().write(&data).unwrap();
        self.sent.extend(&data[..count]);
        let mut wire = from_client(&mut self.client);
        match harm {
            Harm::None => {}
            Harm::Flip { at, bit } if !wire.is_empty() => {
                let at = usize::from(*at) % wire.len();
                wire[at] ^= 1 << (bit & 7);
            }
            Harm::Flip { .. } => {}
            Harm::Short(by) => wire.truncate(wire.len().saturating_sub(usize::from(*by))),
            Harm::Twice => wire.extend_from_within(..),
        }
        self.feed(&wire);
    }

    /// Whether all that was fed so far is what an honest client sent.
    fn sane(&self) -> bool {
        !self.harmed
    }

    fn step(&mut self, step: &Step) {
        let honest = matches!(step, Step::Client { harm: Harm::None, .. });
        let feeds =
            matches!(step, Step::Client { .. } | Step::Raw(_) | Step::Record { .. } | Step::Long { .. });
        self.harmed |= feeds && !honest && !self.closing;
        match step {
            Step::Raw(_) | Step::Record { .. } | Step::Long { .. } if self.closing => {}
            Step::Client { length, .. } if self.closing => self.client_sends(*length, &Harm::None),
            Step::Raw(bytes) => self.feed(bytes),
            Step::Record { kind, body } => {
                let length = (body.len() as u16).to_be_bytes();
                self.feed(
                    &[
                        &[20 + kind % 5, 3, 3, length[0], length[1]],
                        &body[..usize::from(u16::from_be_bytes(length))],
                    ]
                    .concat(),
                );
            }
            Step::Long { kind, length } => {
                let header = [20 + kind % 5, 3, 3, (length >> 8) as u8, *length as u8];
                self.feed(&[&header[..], &vec![*kind; usize::from(*length)]].concat());
            }
            Step::Client { length, harm } => self.client_sends(*length, harm),
            Step::ClientCloses if !self.client.is_handshaking() => {
                self.client.send_close_notify();
                self.closed = true;
                let wire = from_client(&mut self.client);
                self.feed(&wire);
            }
            Step::ClientUpdatesKeys if !self.client.is_handshaking() && !self.closed => {
                let _ = self.client.refresh_traffic_keys();
                let wire = from_client(&mut self.client);
                self.feed(&wire);
            }
            Step::ClientCloses | Step::ClientUpdatesKeys => {}
            Step::Cut => self.tls.end_of_ciphertext(),
            Step::Provide => {
                let result = self.tls.provide_evidence(&fixed().certificate);
                self.note(result);
            }
            Step::Refuse => {
                let _ = self.tls.refuse_evidence();
            }
            Step::Read(length) => self.read(usize::from(*length)),
            Step::Write(length) => {
                let result = self.tls.write_plaintext(&vec![7; usize::from(*length)]);
                self.note(result);
            }
            Step::Take(length) => {
                let mut wire = vec![0; usize::from(*length)];
                self.tls.take_ciphertext(&mut wire);
            }
            Step::Close if self.sane() => {
                self.closing = true;
                let result = self.tls.close();
                self.note(result);
            }
            Step::Close => {}
            Step::Trim => self.tls.trim(),
        }
        let most = MAX_HELLO_BYTES + INCOMING_BYTES + OUTGOING_BYTES + (16 << 10) + 8192;
        assert!(self.tls.memory_bytes() <= 2 * most, "{} bytes", self.tls.memory_bytes());
    }
}

fuzz_target!(|input: Input| {
    let fixed = fixed();
    COUNTER.0.store(1 << 40, Ordering::Relaxed);
    let client = ClientConnection::new(fixed.client.clone(), server_name(&NONCE).unwrap()).unwrap();
    let tls = TlsConnection::new(&fixed.server).unwrap();
    let mut run = Run {
        tls,
        client,
        sent: Vec::new(),
        read: 0,
        closed: false,
        closing: false,
        harmed: false,
        failed: None,
    };
    let progress = input.progress % 4;
    if progress > 0 {
        let hello = from_client(&mut run.client);
        assert_eq!(run.tls.feed(&hello), Ok(hello.len()));
        assert_eq!(run.tls.needs_evidence(), Some(NONCE));
    }
    if progress > 1 {
        run.tls.provide_evidence(&fixed.certificate).unwrap();
        let flight = run.tls.ciphertext().to_vec();
        run.tls.ciphertext_sent(flight.len());
        run.client.read_tls(&mut &flight[..]).unwrap();
        run.client.process_new_packets().unwrap();
    }
    if progress > 2 {
        let finished = from_client(&mut run.client);
        run.tls.feed(&finished).unwrap();
        assert_eq!(run.tls.state(), TlsState::Open);
    }
    for step in input.steps.iter().take(100) {
        run.step(step);
    }
});
