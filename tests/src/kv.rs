//! The key-value store of `apps/kv` as a native program, `redis-server` as what it is compared with, and a client that
//! keeps replies as the bytes they came as.

use crate::cache::{Cache, sha256};
use crate::registry::tool;
use crate::repository;
use crate::skip::Unavailable;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for one answer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Sources of the store that do not depend on the platform.
pub const CORE: [&str; 11] = [
    "main.c",
    "alloc.c",
    "dict.c",
    "store.c",
    "resp.c",
    "reply.c",
    "commands.c",
    "cmd_string.c",
    "cmd_keys.c",
    "cmd_server.c",
    "server.c",
];

/// How the native build is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// With the address and undefined-behaviour sanitizers: any finding ends the program.
    Checked,
    /// As fast as it gets.
    Fast,
}

/// The native build, made now unless it is in the cache.
///
/// # Errors
/// [`Unavailable`] if there is no C compiler; what the compiler says if it refuses the sources.
pub fn native(cache: &Cache, flavour: Flavour) -> Result<PathBuf> {
    let folder = repository().join("apps/kv");
    let flags: &[&str] = match flavour {
        Flavour::Checked => &[
            "-O1",
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ],
        Flavour::Fast => &["-O2"],
    };
    let mut content = vec![format!("{flags:?}").into_bytes()];
    let mut files: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files.iter().map(std::fs::DirEntry::path) {
        if file.extension().is_some_and(|extension| extension == "c" || extension == "h") {
            content.push(std::fs::read(file)?);
        }
    }
    let parts: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
    let key = format!("kv-native-{}", &sha256(&parts)[..24]);
    let entry = cache.entry(&key, |draft| {
        let version = Command::new("cc").arg("--version").stdin(Stdio::null()).output();
        version.map_err(|error| Unavailable(format!("no C compiler: {error}")))?;
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror"]).args(flags).args(CORE);
        tool(command.arg("platform_posix.c").arg("-o").arg(draft.join("kv")).current_dir(&folder)).map(|_| ())
    })?;
    Ok(entry.join("kv"))
}

/// Where a server answers.
#[derive(Clone, Debug)]
enum Address {
    Tcp(u16),
    Unix(PathBuf),
}

/// A running server. It is killed when this is dropped, unless it is somebody else's.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    address: Address,
    _folder: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts the store's native build with options of its command line.
    pub fn kv(program: &Path, options: &[&str]) -> Result<Server> {
        let mut command = Command::new(program);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped());
        // A leak at its end is none: it never ends by itself.
        command.env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=1");
        let mut child = command.spawn().context("can't start kv")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a piped stdout")?).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let address = Address::Tcp(port.with_context(|| format!("kv said {line:?}"))?);
        Ok(Server { child: Some(child), address, _folder: None })
    }

    /// Starts Debian's `redis-server`, without persistence, on a socket in a folder of its own.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not installed.
    pub fn redis() -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("redis");
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--databases", "1", "--unixsocket"])
            .arg(&socket);
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command
            .spawn()
            .map_err(|error| Unavailable(format!("redis-server (Debian package redis-server): {error}")))?;
        let server = Server { child: Some(child), address: Address::Unix(socket), _folder: Some(folder) };
        let start = Instant::now();
        while server.connect().is_err() {
            ensure!(start.elapsed() < LIMIT, "redis-server does not answer");
            std::thread::yield_now();
        }
        Ok(server)
    }

    /// A server that somebody else runs, on this port of the loopback.
    #[must_use]
    pub fn at(port: u16) -> Server {
        Server { child: None, address: Address::Tcp(port), _folder: None }
    }

    /// A new connection.
    pub fn connect(&self) -> Result<Client> {
        Ok(match &self.address {
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                stream.set_nodelay(true)?;
                Client::new(Stream::Tcp(stream))
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                Client::new(Stream::Unix(stream))
            }
        })
    }

    /// The TCP port; 0 if it is on a Unix socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.address {
            Address::Tcp(port) => port,
            Address::Unix(_) => 0,
        }
    }

    /// Whether it still runs, as far as its process is ours.
    pub fn alive(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(buf),
            Stream::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Stream>,
}

/// A request as an array of bulk strings.
#[must_use]
pub fn request(args: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

impl Client {
    fn new(stream: Stream) -> Client {
        Client { stream: BufReader::with_capacity(1 << 16, stream) }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Says that nothing more will be sent.
    pub fn end(&mut self) -> Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write)?,
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Write)?,
        }
        Ok(())
    }

    /// Everything until the server closes the connection; a reset counts as that.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // What had come before an error is there.
        let _ = self.stream.read_to_end(&mut all);
        all
    }

    /// The next reply, nested ones included, as it came.
    pub fn reply(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut missing = 1u64;
        while missing > 0 {
            missing -= 1;
            let start = bytes.len();
            self.stream.read_until(b'\n', &mut bytes)?;
            ensure!(bytes.ends_with(b"\r\n"), "the reply was cut off");
            let line = &bytes[start..bytes.len() - 2];
            let number = || {
                let text = line.get(1..).map(String::from_utf8_lossy).unwrap_or_default();
                text.parse::<i64>().with_context(|| format!("a length was expected: {text:?}"))
            };
            match line.first() {
                Some(b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') => {}
                Some(b'$' | b'=') => {
                    if let Ok(length) = u64::try_from(number()?) {
                        let had = bytes.len();
                        (&mut self.stream).take(length + 2).read_to_end(&mut bytes)?;
                        ensure!(bytes.len() as u64 - had as u64 == length + 2, "the reply was cut off");
                    }
                }
                Some(b'*' | b'~') => missing += u64::try_from(number()?).unwrap_or(0),
                Some(b'%') => missing += 2 * u64::try_from(number()?)?,
                other => bail!("{other:?} starts no reply"),
            }
        }
        Ok(bytes)
    }

    /// Sends a request and waits for its reply.
    pub fn call(&mut self, args: &[impl AsRef<[u8]>]) -> Result<Vec<u8>> {
        self.send(&request(args))?;
        self.reply()
    }

    /// A request of words, its reply as text.
    pub fn ask(&mut self, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        Ok(String::from_utf8_lossy(&self.call(&words)?).into_owned())
    }

    /// A number out of INFO.
    pub fn info(&mut self, name: &str) -> Result<u64> {
        let text = self.ask("INFO")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("INFO has no {name}: {text}"))
    }
}

/// The bulk strings in a reply, in order.
#[must_use]
pub fn bulks(reply: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = reply;
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        rest = after;
        if line.first() == Some(&b'$') {
            let length = String::from_utf8_lossy(&line[1..]).parse::<usize>().unwrap_or(0);
            found.push(after.get(..length).unwrap_or_default().to_vec());
            rest = after.get(length + 2..).unwrap_or_default();
        }
    }
    found
}
