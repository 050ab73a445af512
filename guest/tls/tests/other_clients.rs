//! Other clients than rustls, over loopback sockets: OpenSSL, curl, Python. They know nothing of evidence; what
//! is tested is that our TLS is everybody's.

mod common;

use common::*;
use nacre_tls::{Nonce, Read, TlsConnection, TlsError, TlsState};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// What became of a connection: the nonce that was asked for, what was read, and the error.
#[derive(Debug, Default)]
struct Outcome {
    asked: Option<Nonce>,
    read: Vec<u8>,
    error: Option<TlsError>,
}

/// Serves one client: `answer` to a whole request in `read`, as soon as it has one, and closes when the client
/// does, or at once if `close` says so.
fn serve(close: bool, answer: fn(&[u8]) -> Option<Vec<u8>>) -> (SocketAddr, JoinHandle<Outcome>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut outcome = Outcome::default();
        if let Err(error) = converse(&mut socket, close, answer, &mut outcome) {
            outcome.error = Some(error);
        }
        outcome
    });
    (address, thread)
}

fn converse(
    socket: &mut TcpStream,
    close: bool,
    answer: fn(&[u8]) -> Option<Vec<u8>>,
    outcome: &mut Outcome,
) -> Result<(), TlsError> {
    let mut tls = connection();
    let mut result = Ok(());
    let mut answered = false;
    let mut buffer = [0; 5000];
    let mut to_send: Vec<u8> = Vec::new();
    loop {
        // `sent` is what the client is to see even of a connection that failed.
        let mut out = [0; 3000];
        while let count @ 1.. = tls.take_ciphertext(&mut out) {
            if socket.write_all(&out[..count]).is_err() {
                return result;
            }
        }
        if result.is_err() || tls.finished() {
            return result;
        }
        if !to_send.is_empty() {
            let count = tls.write_plaintext(&to_send)?;
            to_send.drain(..count);
            if to_send.is_empty() && (close || tls.peer_closed()) {
                tls.close()?;
            }
            continue;
        }
        match socket.read(&mut buffer) {
            Ok(0) => tls.end_of_ciphertext(),
            Ok(count) => result = step(&mut tls, &buffer[..count], outcome),
            Err(_) => tls.end_of_ciphertext(),
        }
        if let TlsState::Failed(error) = tls.state() {
            result = Err(error);
        } else if !answered && let Some(text) = answer(&outcome.read) {
            answered = true;
            to_send = text;
        } else if tls.peer_closed() {
            tls.close()?;
        }
    }
}

fn step(tls: &mut TlsConnection, mut bytes: &[u8], outcome: &mut Outcome) -> Result<(), TlsError> {
    while !bytes.is_empty() {
        let count = tls.feed(bytes)?;
        bytes = &bytes[count..];
        if let Some(nonce) = tls.needs_evidence() {
            outcome.asked = Some(nonce);
            tls.provide_evidence(&certificate(&nonce))?;
        }
        let mut part = [0; 700];
        while let Read::Bytes(count) = tls.read_plaintext(&mut part)? {
            outcome.read.extend_from_slice(&part[..count]);
        }
    }
    Ok(())
}

/// Whether a program is there; says so past the test's captured output if not. In CI all of them must be.
fn have(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        let line = format!("SKIPPED other clients: there is no {program} here; install it\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{program} is missing, and may not be in CI");
    }
    found
}

fn line(read: &[u8]) -> Option<Vec<u8>> {
    read.ends_with(b"\n").then(|| [b"you said: ", read].concat())
}

/// Runs `openssl s_client` until it has seen the answer to a line.
fn openssl(address: SocketAddr, arguments: &[&str]) -> String {
    let mut child = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &address.to_string(), "-no_ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl: install it (apt-get install openssl)");
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(b"good day\n");
    let mut stdout = child.stdout.take().unwrap();
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stdout.read(&mut part) {
        seen.extend_from_slice(&part[..count]);
        if seen.windows(18).any(|window| window == b"you said: good day") {
            break;
        }
    }
    drop(stdin);
    while let Ok(count @ 1..) = stdout.read(&mut part) {
        seen.extend_from_slice(&part[..count]);
    }
    child.wait().unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn openssl_in_all_its_ways() {
    if !have("openssl") {
        return;
    }
    let asked = nonce();
    let name = asked.server_name();
    for (arguments, expected) in [
        (&["-servername", &name][..], "TLS_AES_256_GCM_SHA384"),
        (&["-servername", &name, "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "TLS_AES_128_GCM_SHA256"),
        (&["-servername", &name, "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], "CHACHA20_POLY1305"),
        (&["-servername", &name, "-groups", "P-256"], "ECDH, prime256v1"),
        // The first group is one we don't have: a retry (HelloRetryRequest).
        (&["-servername", &name, "-groups", "P-384:P-256"], "ECDH, prime256v1"),
        (&["-servername", &name, "-groups", "X448:X25519"], "X25519"),
        (&["-servername", "kv.example", "-groups", "X448:X25519"], "X25519"),
        (&["-servername", "kv.example", "-groups", "P-384:P-256"], "ECDH, prime256v1"),
        (&["-noservername", "-groups", "X25519"], "X25519"),
    ] {
        let (address, thread) = serve(false, line);
        let seen = openssl(address, arguments);
        let outcome = thread.join().unwrap();
        assert!(seen.contains("TLSv1.3") && seen.contains(expected), "{arguments:?}: {seen}");
        assert!(seen.contains("you said: good day"), "{arguments:?}: {seen}");
        assert_eq!(outcome.error, None, "{arguments:?}");
        assert_eq!(outcome.read, b"good day\n");
        assert_eq!(outcome.asked, arguments.contains(&name.as_str()).then_some(asked));
    }
}

#[test]
fn openssl_is_refused_with_tls_1_2() {
    if !have("openssl") {
        return;
    }
    let (address, thread) = serve(false, line);
    let seen = openssl(address, &["-tls1_2"]);
    assert_eq!(thread.join().unwrap().error, Some(TlsError::Incompatible));
    assert!(!seen.contains("you said"), "{seen}");
}

/// OpenSSL reads the certificate as we mean it.
#[test]
fn openssl_parses_the_certificate() {
    if !have("openssl") {
        return;
    }
    let evidence = b"\x01some evidence";
    let certificate = identity().certificate(evidence).unwrap();
    let text = |arguments: &[&str]| {
        let mut child = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-noout"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("openssl: install it (apt-get install openssl)");
        child.stdin.take().unwrap().write_all(certificate.der()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = text(&["-text"]);
    for expected in [
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "ASN1 OID: prime256v1",
        "Not After : Dec 31 23:59:59 9999 GMT",
        "1.3.6.1.3.110.97.99.114.101.1:",
        "some evidence",
    ] {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
    // The key it finds is the one the evidence is about.
    let pem = text(&["-pubkey"]);
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(body, base64(identity().spki()));
    assert_eq!(
        identity().certificate(evidence).unwrap().der(),
        certificate.der(),
        "equal evidence, equal certificate"
    );
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let word =
            part.iter().fold(0u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - part.len()));
        for index in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= part.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn page(read: &[u8]) -> Option<Vec<u8>> {
    let body = pattern(300_000).iter().map(|byte| b'a' + byte % 26).collect::<Vec<_>>();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    read.ends_with(b"\r\n\r\n").then(|| [head.as_bytes(), &body].concat())
}

#[test]
fn curl_gets_a_page() {
    if !have("curl") {
        return;
    }
    let asked = nonce();
    let (address, thread) = serve(true, page);
    let name = asked.server_name();
    let output: Output = Command::new("curl")
        .args(["-k", "-sS", "--max-time", "20", "--noproxy", "*", "--connect-to"])
        .arg(format!("{name}:443:{address}"))
        .arg(format!("https://{name}/"))
        .output()
        .expect("curl: install it (apt-get install curl)");
    let outcome = thread.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let expected = page(b"\r\n\r\n").unwrap();
    assert!(expected.ends_with(&output.stdout) && output.stdout.len() == 300_000, "{}", output.stdout.len());
    assert_eq!(outcome.asked, Some(asked));
    assert!(outcome.read.starts_with(b"GET / HTTP/1.1\r\n"));
}

/// Python's ssl sees the evidence in the certificate, and how a connection that is cut off differs from one that is
/// closed.
#[test]
fn python_sees_the_evidence() {
    if !have("python3") {
        return;
    }
    const PROGRAM: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
tls = context.wrap_socket(raw, server_hostname=sys.argv[2], suppress_ragged_eofs=False)
print(tls.version(), bytes.fromhex(sys.argv[3]) in tls.getpeercert(True))
tls.sendall(b"one line\n")
text = b""
while not text.endswith(b"\n"):
    text += tls.recv(100)
print(text.decode().strip())
if sys.argv[4] == "close":
    tls.unwrap()
"#;
    for how in ["close", "cut"] {
        let asked = nonce();
        let (address, thread) = serve(false, line);
        let hex = asked.server_name().replace(nacre_tls::name::SUFFIX, "").replace('.', "");
        let output = Command::new("timeout")
            .args([
                "20",
                "python3",
                "-c",
                PROGRAM,
                &address.port().to_string(),
                &asked.server_name(),
                &hex,
                how,
            ])
            .output()
            .expect("python3: install it (apt-get install python3)");
        let outcome = thread.join().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, "TLSv1.3 True\nyou said: one line\n", "{how}: {output:?}");
        assert_eq!(outcome.asked, Some(asked));
        assert_eq!(outcome.error, (how == "cut").then_some(TlsError::Truncated));
    }
}
