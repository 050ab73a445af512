//! A node under test: the real binary on a free port of the loopback, with a state directory of its own; the commands that
//! drive it, and requests that no honest client sends.

use crate::job::{Ended, Nacre, finish};
use crate::live::Live;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long one answer may take before it counts as never coming.
const PATIENCE: Duration = Duration::from_secs(120);

/// A state directory and a context file, removed in the end.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty place.
    pub fn new() -> Result<Place> {
        Ok(Place { dir: tempfile::tempdir()? })
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Another file beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A call of `nacre` that finds this place's node and nobody else's.
    pub fn command(&self, nacre: &Nacre) -> Command {
        let mut command = nacre.command();
        for name in ["NACRE_NODE", "NACRE_AUTH", "NACRE_TENANT", "NACRE_LOG"] {
            command.env_remove(name);
        }
        command.env("NACRE_STATE_DIR", self.state()).env("NACRE_CONTEXT", self.path("context.json"));
        command
    }
}

/// A running node. It is killed when this is dropped.
#[derive(Debug)]
pub struct Node<'n> {
    nacre: &'n Nacre,
    place: &'n Place,
    process: Live,
    address: SocketAddr,
    peer_address: Option<SocketAddr>,
}

/// A tenant: its name and credentials.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// `uuid:key`.
    pub auth: String,
}

/// An answer to a raw request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// Its head as text.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The text of an error.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

impl<'n> Node<'n> {
    /// Starts a node with further options; returns when it serves.
    pub fn start(nacre: &'n Nacre, place: &'n Place, options: &[&str]) -> Result<Node<'n>> {
        let mut command = place.command(nacre);
        command.args(["node", "start", "--listen", "127.0.0.1:0", "--json"]).args(options);
        let mut process = Live::start(&mut command)?;
        let ready: Value = serde_json::from_str(&process.hear()?)?;
        let address = ready["listen"].as_str().context("it says where it listens")?.parse()?;
        let peer_address = ready["peer_listen"].as_str().map(str::parse).transpose()?;
        Ok(Node { nacre, place, process, address, peer_address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other nodes reach it, if it was started with `--peer-listen`.
    pub fn peer_address(&self) -> Result<SocketAddr> {
        self.peer_address.context("it has no peer port")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> rustix::process::Pid {
        self.process.pid()
    }

    /// Kills it as a power cut would.
    pub fn kill(self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.end_with_open_stdin().map(drop)
    }

    /// Asks it to end; its exit code and its log.
    pub fn terminate(self) -> Result<(i32, String)> {
        self.process.signal(Signal::TERM)?;
        let (code, _, log) = self.process.end_with_open_stdin()?;
        Ok((code, log))
    }

    /// Runs a command of the administrator.
    pub fn admin(&self, args: &[&str]) -> Result<Ended> {
        finish(self.place.command(self.nacre).args(args), b"")
    }

    /// Runs a command of a tenant.
    pub fn run(&self, tenant: &Tenant, args: &[&str]) -> Result<Ended> {
        let mut command = self.place.command(self.nacre);
        command.env("NACRE_NODE", self.url()).env("NACRE_AUTH", &tenant.auth);
        finish(command.args(args), b"")
    }

    /// Adds a tenant with further options.
    pub fn tenant(&self, name: &str, options: &[&str]) -> Result<Tenant> {
        let ended = self.admin(&[&["tenant", "add", name, "--json"], options].concat())?;
        ensure!(ended.code == 0, "tenant add: {}", ended.stderr);
        let added: Value = serde_json::from_slice(&ended.stdout)?;
        let auth = added["auth"].as_str().context("credentials")?.to_owned();
        Ok(Tenant { name: name.to_owned(), auth })
    }

    /// A connection with a limit on every read.
    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends these bytes on a connection of their own and reads one answer.
    pub fn raw(&self, request: &[u8]) -> Result<Answer> {
        let mut stream = self.connect()?;
        // A node that refuses early does not read the rest.
        let _ = stream.write_all(request);
        read_answer(&mut stream)
    }

    /// One request of a tenant.
    pub fn request(&self, tenant: Option<&Tenant>, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        self.raw(&request(tenant, method, path, body, true))
    }

    /// A blocking call of an action, on a connection of its own.
    pub fn invoke(&self, tenant: &Tenant, action: &str, body: &str) -> Result<Answer> {
        let path = format!("/api/v1/namespaces/_/actions/{action}?blocking=true");
        self.request(Some(tenant), "POST", &path, body.as_bytes())
    }

    /// Deploys a module under a name, by OpenWhisk's API.
    pub fn deploy(&self, tenant: &Tenant, name: &str, module: &Path) -> Result<()> {
        let ended = self.run(tenant, &["deploy", name, module.to_str().context("UTF-8")?])?;
        ensure!(ended.code == 0, "deploy: {}", ended.stderr);
        Ok(())
    }
}

/// A port of the loopback that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A request as text.
pub fn request(tenant: Option<&Tenant>, method: &str, path: &str, body: &[u8], last: bool) -> Vec<u8> {
    let authorization =
        tenant.map(|tenant| format!("Authorization: Basic {}\r\n", base64(tenant.auth.as_bytes())));
    let close = if last { "Connection: close\r\n" } else { "" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\n{}{close}Content-Length: {}\r\n\r\n",
        authorization.unwrap_or_default(),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Reads one answer.
pub fn read_answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        ensure!(
            stream.read(&mut byte)? == 1,
            "the connection ended after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes)?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    let length = header(&head, "content-length").map_or(Ok(0), |text| text.parse::<usize>())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer { status, head, body })
}

/// A header of an answer.
pub fn header<'t>(head: &'t str, name: &str) -> Option<&'t str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}

/// Whether the other end closes a connection on which nothing is sent any more, within `limit`.
pub fn is_closed_within(stream: &mut TcpStream, limit: Duration) -> Result<bool> {
    stream.set_read_timeout(Some(limit))?;
    let mut rest = Vec::new();
    let closed = stream.read_to_end(&mut rest).is_ok();
    let _ = stream.shutdown(Shutdown::Both);
    Ok(closed)
}

/// Base64 with the usual alphabet and padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |word, at| word << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_of_rfc_4648() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(plain.as_bytes()), text);
        }
    }
}
