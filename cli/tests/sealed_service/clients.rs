//! A sealed service at a port, and its clients: rustls with the evidence verifier, over sockets that remember what went through.

use crate::sealed_support::{Software, World};
use nacre_attest::claims::{Label, Role};
use nacre_attest::evidence::Evidence;
use nacre_attest::manifest::Mode;
use nacre_attest::package::Header;
use nacre_attest::policy::Policy;
use nacre_attest::verify::{Expect, Verdict, verify};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_session::command::ModuleKind;
use nacre_tls::client::{config, server_name};
use nacre_tls::name::Nonce;
use nacre_vmm::Cvm;
use nacre_vmm::evidence::{Platform, ReportDone, ReportRequest};
use nacre_vmm::program::{Connector, Exit, Program, ProgramEvent, RunOptions};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that tell where they belong.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A service that runs.
pub struct Service<'a> {
    pub cvm: &'a Cvm,
    pub policy: Policy,
    program: &'a Program<'a>,
    connector: Connector,
    listener: TcpListener,
}

/// A client's end.
pub type Client = StreamOwned<ClientConnection, Wire>;

/// A socket, and all bytes that went through.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    pub seen: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.tcp.read(buf)?;
        self.seen.extend_from_slice(&buf[..count]);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.tcp.write(buf)?;
        self.seen.extend_from_slice(&buf[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// What a node does to a connection after so many bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    ToClient(u64),
    ToService(u64),
    /// Changes a byte on its way to the service.
    Flip(u64),
}

/// Runs a service of the module `wasm`, and `test` with it.
pub fn serve(what: &str, wasm: &[u8], kind: ModuleKind, test: impl FnOnce(&Service<'_>)) {
    let Some(world) = World::new(what, Mode::Sealed) else { return };
    let cvm = world.launch();
    run(&world, &cvm, wasm, kind, test);
}

/// A platform that signs unless it is told not to.
struct Moody(Software, Arc<AtomicBool>);

impl Platform for Moody {
    fn report(&self, request: ReportRequest, done: ReportDone) {
        match self.1.load(Ordering::SeqCst) {
            true => done(None),
            false => self.0.report(request, done),
        }
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        self.0.certificates()
    }
}

/// The same as [`serve`] on a platform that signs nothing while `silent` says so.
pub fn serve_on(what: &str, wasm: &[u8], silent: Arc<AtomicBool>, test: impl FnOnce(&Service<'_>)) {
    let Some(world) = World::new(what, Mode::Sealed) else { return };
    let cvm = world.launch_on(Moody(world.software(), silent));
    run(&world, &cvm, wasm, ModuleKind::TlsService, test);
}

fn run(world: &World, cvm: &Cvm, wasm: &[u8], kind: ModuleKind, test: impl FnOnce(&Service<'_>)) {
    let mut session = world.open(cvm);
    let code = compile(&Module::parse(wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let package = world.package("service", 1, kind, &code);
    let _module = world.install(cvm, &mut session, &package);
    let id = Header::parse(&package.bytes).unwrap().id;
    let program = cvm.load_service(id, RunOptions::default()).unwrap();
    program.start().unwrap();
    test(&Service {
        cvm,
        policy: world.policy(),
        program: &program,
        connector: program.connector(),
        listener: TcpListener::bind("127.0.0.1:0").unwrap(),
    });
}

fn fresh() -> Nonce {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Nonce::new(bytes)
}

/// Does the handshake.
fn shake(mut conn: ClientConnection, tcp: TcpStream) -> io::Result<Client> {
    let mut wire = Wire { tcp, seen: Vec::new() };
    while conn.is_handshaking() {
        conn.complete_io(&mut wire)?;
    }
    Ok(StreamOwned::new(conn, wire))
}

impl Service<'_> {
    /// A client's socket.
    pub fn tcp(&self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        // Of several threads that come at once each accepts one of them; whose it is makes no difference.
        let (stream, peer) = self.listener.accept().unwrap();
        self.connector.relay(stream, peer).unwrap();
        client
    }

    /// The same, remembered.
    pub fn wire(&self) -> Wire {
        Wire { tcp: self.tcp(), seen: Vec::new() }
    }

    /// A verified connection.
    pub fn dial(&self) -> io::Result<Client> {
        self.dial_with(&self.policy)
    }

    /// The same by another policy.
    pub fn dial_with(&self, policy: &Policy) -> io::Result<Client> {
        Service::dial_over(policy, self.tcp(), &Shown::default())
    }

    /// The same over a node that cuts or changes it.
    pub fn dial_through(&self, cut: Cut) -> io::Result<Client> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, far) = (listener.accept().unwrap().0, self.tcp());
        let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || {
            carry(near, far, if let Cut::ToService(at) = cut { Some(at) } else { None }, cut)
        });
        std::thread::spawn(move || {
            carry(
                far_too,
                near_too,
                if let Cut::ToClient(at) = cut { Some(at) } else { None },
                Cut::ToClient(0),
            );
        });
        Service::dial_over(&self.policy, client, &Shown::default())
    }

    /// A verified connection over a socket that is there; `shown` gets the evidence.
    pub fn dial_over(policy: &Policy, tcp: TcpStream, shown: &Shown) -> io::Result<Client> {
        let nonce = fresh();
        let (policy, seen) = (policy.clone(), shown.clone());
        let config = config(nonce, move |shown| {
            let evidence = Evidence::decode(shown.evidence).map_err(|error| error.to_string())?;
            if evidence.claims.key != shown.spki_sha256 {
                return Err("it is of another key".into());
            }
            let verdict = judge(&evidence, *shown.nonce.bytes(), &policy);
            let failed: Vec<&str> = verdict.failed().map(|rule| rule.name).collect();
            *seen.lock().unwrap() = Some(evidence);
            if verdict.accepted() { Ok(()) } else { Err(failed.join(", ")) }
        });
        let name = server_name(&nonce).unwrap();
        shake(ClientConnection::new(config.unwrap().into(), name).unwrap(), tcp)
    }

    /// The evidence of a fresh connection.
    pub fn evidence(&self) -> Evidence {
        let shown = Shown::default();
        Service::dial_over(&self.policy, self.tcp(), &shown).unwrap();
        shown.lock().unwrap().take().unwrap()
    }

    /// A connection that names no nonce, and the evidence in the certificate that it was shown.
    pub fn dial_anonymous(&self, name: &'static str) -> io::Result<(Client, Evidence)> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let shown = Shown::default();
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone { provider, shown: shown.clone() }))
            .with_no_client_auth();
        let name = ServerName::try_from(name).unwrap();
        let client = shake(ClientConnection::new(config.into(), name).unwrap(), self.tcp())?;
        let evidence = shown.lock().unwrap().take().unwrap();
        Ok((client, evidence))
    }

    pub fn judge(&self, evidence: &Evidence, nonce: [u8; 32], policy: &Policy) -> Verdict {
        judge(evidence, nonce, policy)
    }

    /// The first message of a client.
    pub fn hello(&self) -> Vec<u8> {
        let nonce = fresh();
        let config = config(nonce, |_| Ok(())).unwrap();
        let mut conn = ClientConnection::new(config.into(), server_name(&nonce).unwrap()).unwrap();
        let mut hello = Vec::new();
        conn.write_tls(&mut hello).unwrap();
        hello
    }

    /// Connections that are open on either side.
    pub fn open(&self) -> usize {
        self.connector.stats().open
    }

    /// Waits until both sides have done with all but so many connections.
    pub fn wait_until_open(&self, open: usize) {
        while self.open() != open {
            std::thread::yield_now();
        }
    }

    /// Waits for the end of the program, of which the host sees nothing else.
    pub fn exit(&self) -> Exit {
        loop {
            match self.program.next_event().unwrap() {
                ProgramEvent::Exited(exit) => return exit,
                ProgramEvent::Output { bytes, .. } => assert!(bytes.is_empty()),
                _ => {}
            }
        }
    }
}

/// The evidence that a verifier has seen.
/// Where the evidence goes that a client was shown.
pub type Shown = Arc<Mutex<Option<Evidence>>>;

fn judge(evidence: &Evidence, nonce: [u8; 32], policy: &Policy) -> Verdict {
    verify(evidence, policy, &Expect { nonce, label: Label::Tls, role: Role::Cvm, now: None })
}

/// Carries bytes one way; stops after so many, or changes the one there.
fn carry(mut from: TcpStream, mut to: TcpStream, cut: Option<u64>, how: Cut) {
    let (mut at, mut buf) = (0, vec![0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buf) {
        let end = at + count as u64;
        if let Cut::Flip(place) = how
            && (at..end).contains(&place)
        {
            buf[(place - at) as usize] ^= 1;
        }
        let keep = cut.map_or(count, |cut| count.min(cut.saturating_sub(at) as usize));
        if to.write_all(&buf[..keep]).is_err() || keep < count {
            break;
        }
        at = end;
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A client that takes whatever certificate it is shown, and remembers the evidence in it.
#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
    shown: Shown,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // OCTET STRING, length in two bytes, then the magic of evidence.
        let at = certificate.windows(8).position(|bytes| bytes == b"NACREEV1").unwrap();
        let len = usize::from(u16::from_be_bytes([certificate[at - 2], certificate[at - 1]]));
        *self.shown.lock().unwrap() = Some(Evidence::decode(&certificate[at..at + len]).unwrap());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Sends a command to a store; returns so many bytes of its answer.
pub fn kv(client: &mut Client, command: &str, len: usize) -> String {
    client.write_all(command.as_bytes()).unwrap();
    let mut answer = vec![0; len];
    client.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// A connection whose directions are used by two threads.
pub struct Duplex {
    conn: Mutex<ClientConnection>,
    tcp: TcpStream,
    sent: AtomicUsize,
}

impl Duplex {
    pub fn new(client: Client) -> Duplex {
        Duplex { conn: Mutex::new(client.conn), tcp: client.sock.tcp, sent: AtomicUsize::new(0) }
    }

    /// Plaintext that went into the socket.
    pub fn sent_bytes(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(20_000) {
            let mut sealed = Vec::new();
            let mut conn = self.conn.lock().unwrap();
            conn.writer().write_all(piece)?;
            while conn.wants_write() {
                conn.write_tls(&mut sealed)?;
            }
            drop(conn);
            (&self.tcp).write_all(&sealed)?;
            self.sent.fetch_add(piece.len(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Ends this side in order.
    pub fn close(&self) -> io::Result<()> {
        let mut sealed = Vec::new();
        let mut conn = self.conn.lock().unwrap();
        conn.send_close_notify();
        while conn.wants_write() {
            conn.write_tls(&mut sealed)?;
        }
        drop(conn);
        (&self.tcp).write_all(&sealed)
    }

    pub fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let (mut all, mut buf) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let count = (&self.tcp).read(&mut buf)?;
            let mut sealed = &buf[..count];
            let mut conn = self.conn.lock().unwrap();
            loop {
                conn.read_tls(&mut sealed)?;
                conn.process_new_packets().map_err(io::Error::other)?;
                match conn.reader().read_to_end(&mut all) {
                    Ok(_) => return Ok(all),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if sealed.is_empty() {
                    break;
                }
            }
        }
    }
}
