//! Nodes over real TLS on the loopback.

use super::bare::PREAMBLE;
use super::*;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{Extension, Json};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Everything here takes milliseconds; this is for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// A node: its state directory, what it knows, and its port.
struct Fixture {
    peers: Peers,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peers = Peers::open(dir.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        peers.reached_at(address.into());
        let (stop, stopping) = watch::channel(false);
        let serving = tokio::spawn(serve(peers.clone(), listener, router(), stopping));
        Self { peers, address, stop, serving, _dir: dir }
    }

    fn url(&self) -> PeerUrl {
        self.address.into()
    }

    fn trusts(&self, other: &Fixture) {
        let peer = TrustedPeer::new(other.peers.fingerprint(), Some(other.url()), None);
        self.peers.trust(peer).unwrap();
    }

    async fn asks(&self, other: &Fixture) -> Result<Value, PeerError> {
        soon(self.peers.ask(&other.url(), "/who", &json!({ "a": 1 }))).await
    }
}

/// Two nodes that trust each other.
async fn pair() -> (Fixture, Fixture) {
    let (one, two) = (Fixture::start().await, Fixture::start().await);
    one.trusts(&two);
    two.trusts(&one);
    (one, two)
}

fn router() -> Router {
    async fn who(Extension(Caller(who)): Extension<Caller>, Question(asked): Question<Value>) -> Json<Value> {
        Json(json!({ "who": who, "asked": asked }))
    }
    async fn refuse() -> Response {
        (StatusCode::CONFLICT, Json(json!({ "error": "Busy; come back." }))).into_response()
    }
    async fn echo(request: Request) -> Response {
        let head = json!({
            "method": request.method().as_str(),
            "path": request.uri().to_string(),
            "kept": request.headers().get("x-kept").map(|value| value.to_str().unwrap()),
            "hop": request.headers().contains_key("x-hop"),
        });
        ([("x-head", head.to_string())], request.into_body()).into_response()
    }
    async fn stream(stream: StreamRequest<Value>) -> Response {
        if stream.question == "no" {
            return (StatusCode::FORBIDDEN, Json(json!({ "error": "Not this." }))).into_response();
        }
        stream.accept(async |mut stream| {
            let (mut from, mut to) = tokio::io::split(&mut stream);
            // Ends when the other end does.
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = stream.shutdown().await;
        })
    }
    Router::new()
        .route("/who", post(who))
        .route("/refuse", post(refuse))
        .route("/long", post(async || Json("x".repeat(2 << 20))))
        .route("/never", post(async || std::future::pending::<String>().await))
        .route("/text", post(async || "text"))
        .route("/echo/{rest}", any(echo))
        .route("/stream", post(stream))
        .layer(axum::extract::DefaultBodyLimit::disable())
}

#[tokio::test]
async fn nodes_that_trust_each_other_talk() {
    let (one, two) = pair().await;
    for (from, to) in [(&one, &two), (&two, &one), (&one, &two)] {
        let answer = from.asks(to).await.unwrap();
        assert_eq!(answer, json!({ "who": from.peers.fingerprint(), "asked": { "a": 1 } }));
    }
    // One that was started again knows all that.
    let again = Peers::open(one._dir.path()).unwrap();
    assert_eq!((again.fingerprint(), again.trusted()), (one.peers.fingerprint(), one.peers.trusted()));
    // Open requests are finished, then it ends.
    one.stop.send(true).unwrap();
    soon(one.serving).await.unwrap();
    let error = two.peers.ask::<_, Value>(&one.address.into(), "/who", &1).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn trust_takes_both() {
    let (one, two) = (Fixture::start().await, Fixture::start().await);
    let (url, fingerprint) = (two.url(), two.peers.fingerprint());
    assert_eq!(one.asks(&two).await, Err(PeerError::NotTrusted { node: url.clone(), fingerprint }));
    assert_eq!(soon(one.peers.look(&url)).await, Ok(fingerprint));
    one.trusts(&two);
    let command = format!("nacre node trust {} --fingerprint {}", one.url(), one.peers.fingerprint());
    let refused = PeerError::NotTrustedThere { node: url.clone(), command: command.clone() };
    assert_eq!(one.asks(&two).await, Err(refused.clone()));
    assert!(refused.to_string().ends_with(&command));
    assert_eq!(soon(one.peers.stream(&url, "/stream", &1)).await.unwrap_err(), refused);
    // Nobody has to be started again.
    two.trusts(&one);
    one.asks(&two).await.unwrap();
}

#[tokio::test]
async fn an_address_is_one_nodes() {
    let (one, two) = pair().await;
    let three = Fixture::start().await;
    for (from, to) in [(&one, &three), (&three, &one)] {
        let peer = TrustedPeer::new(to.peers.fingerprint(), None, None);
        from.peers.trust(peer).unwrap();
    }
    // An address that nobody has recorded may be any trusted node's, and then has a connection that is kept.
    one.asks(&three).await.unwrap();
    // The second node is said to be where the third one is.
    let (recorded, shown) = (two.peers.fingerprint(), three.peers.fingerprint());
    one.peers.trust(TrustedPeer::new(recorded, Some(three.url()), None)).unwrap();
    let wrong = PeerError::OtherKey { node: three.url(), recorded, shown };
    assert_eq!(one.asks(&three).await.unwrap_err(), wrong);
    assert_eq!(one.asks(&one).await.unwrap_err(), PeerError::Itself { node: one.url() });
}

#[tokio::test]
async fn the_end_of_trust_is_the_end_of_connections() {
    for ends_here in [true, false] {
        let (one, two) = pair().await;
        one.asks(&two).await.unwrap();
        let mut stream = soon(one.peers.stream(&two.url(), "/stream", &"yes")).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(soon(stream.read_u8()).await.unwrap(), b'x');
        let (at, of) = if ends_here { (&one, &two) } else { (&two, &one) };
        assert!(at.peers.distrust(of.peers.fingerprint()).unwrap());
        assert!(!at.peers.distrust(of.peers.fingerprint()).unwrap());
        // The connection that was kept is not used, and the stream ends.
        assert!(!matches!(soon(stream.read(&mut [0])).await, Ok(1..)));
        let error = one.asks(&two).await.unwrap_err();
        let as_expected = match &error {
            PeerError::NotTrusted { .. } => ends_here,
            PeerError::NotTrustedThere { .. } => !ends_here,
            _ => false,
        };
        assert!(as_expected, "{error}");
    }
}

#[tokio::test]
async fn answers_are_bounded_and_errors_told_apart() {
    let (one, two) = pair().await;
    let ask = |path: &'static str, bounds| {
        let (peers, url) = (one.peers.clone(), two.url());
        async move { soon(peers.ask_within::<_, Value>(&url, path, &1, bounds)).await.unwrap_err() }
    };
    let usual = Bounds::default();
    let refused = PeerError::Answered { node: two.url(), status: 409, text: "Busy; come back".into() };
    assert_eq!(ask("/refuse", usual).await, refused);
    assert!(matches!(ask("/nothing", usual).await, PeerError::Answered { status: 404, .. }));
    assert!(matches!(ask("/long", usual).await, PeerError::Protocol { .. }));
    assert!(matches!(ask("/text", usual).await, PeerError::Protocol { .. }));
    let brief = Bounds { wait: Duration::from_millis(50), ..usual };
    assert!(matches!(ask("/never", brief).await, PeerError::TimedOut { .. }));
    let url = two.url();
    let long = one.peers.ask_within::<_, String>(&url, "/long", &1, Bounds { answer: 3 << 20, ..usual });
    assert_eq!(soon(long).await.unwrap().len(), 2 << 20);
    // A question that is too long for who is asked.
    let error = soon(one.peers.ask::<_, Value>(&two.url(), "/who", &"x".repeat(1 << 20))).await.unwrap_err();
    assert!(matches!(error, PeerError::Answered { status: 413, .. } | PeerError::Broken { .. }), "{error}");
    // A port where nobody is, and one where somebody else is.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: PeerUrl = listener.local_addr().unwrap().into();
    let other = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail\r\n").await.unwrap();
        // Until the other end has enough.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    let error = soon(one.peers.ask::<_, Value>(&address, "/", &1)).await.unwrap_err();
    assert!(matches!(error, PeerError::Protocol { .. }), "{error}");
    soon(other).await.unwrap();
    let error = soon(one.peers.ask::<_, Value>(&address, "/", &1)).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
}

/// Byte `index` of a body that tells when something is missing or twice.
fn byte(index: usize) -> u8 {
    (index ^ index >> 8 ^ index >> 16) as u8
}

#[tokio::test]
async fn a_forwarded_request_streams_both_ways() {
    const LENGTH: usize = 8 << 20;
    const PIECE: usize = 48 << 10;
    let (one, two) = pair().await;
    let (pieces, queue) = tokio::sync::mpsc::channel::<Bytes>(1);
    let request = Request::builder()
        .method(Method::PUT)
        .uri("http://somewhere/echo/a%20b?c=d")
        .header("x-kept", "yes")
        .header("connection", "X-Hop")
        .header("x-hop", "1")
        .body(Body::new(Pieces(queue)))
        .unwrap();
    let answer = soon(one.peers.forward(&two.url(), request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let head: Value = serde_json::from_slice(answer.headers()["x-head"].as_bytes()).unwrap();
    let expected = json!({ "method": "PUT", "path": "/echo/a%20b?c=d", "kept": "yes", "hop": false });
    assert_eq!(head, expected);
    // The head is there before the body is: nothing is collected on the way. Then each piece comes while the next is sent.
    let sender = tokio::spawn(async move {
        let all: Vec<u8> = (0..LENGTH).map(byte).collect();
        for piece in all.chunks(PIECE) {
            pieces.send(Bytes::copy_from_slice(piece)).await.unwrap();
        }
    });
    let mut body = answer.into_body();
    let mut taken = 0;
    while let Some(frame) = soon(body.frame()).await {
        for got in frame.unwrap().into_data().unwrap() {
            assert_eq!(got, byte(taken));
            taken += 1;
        }
    }
    assert_eq!(taken, LENGTH);
    sender.await.unwrap();
}

/// A body that comes in pieces.
struct Pieces(tokio::sync::mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| Some(Ok(Frame::data(piece?))))
    }
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways() {
    let (one, two) = pair().await;
    let refused = PeerError::Answered { node: two.url(), status: 403, text: "Not this".into() };
    assert_eq!(soon(one.peers.stream(&two.url(), "/stream", &"no")).await.unwrap_err(), refused);
    let error = soon(one.peers.stream(&two.url(), "/text", &"")).await.unwrap_err();
    assert!(matches!(error, PeerError::Answered { status: 200, .. }), "{error}");
    let error = soon(one.peers.stream(&two.url(), "/stream", &"x".repeat(17 << 10))).await.unwrap_err();
    assert!(matches!(error, PeerError::Protocol { .. }), "{error}");
    // A handler of a stream is no handler of questions.
    let error = soon(one.peers.ask::<_, Value>(&two.url(), "/stream", &1)).await.unwrap_err();
    assert!(matches!(error, PeerError::Answered { status: 426, .. }), "{error}");
    let stream = soon(one.peers.stream(&two.url(), "/stream", &"yes")).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..3 << 20).map(byte).collect();
    let all = sent.clone();
    let writer = tokio::spawn(async move {
        to.write_all(&all).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut taken = Vec::new();
    soon(from.read_to_end(&mut taken)).await.unwrap();
    assert!(taken == sent);
    writer.await.unwrap();
}

#[tokio::test]
async fn a_ticket_brings_one_bare_connection() {
    let (one, two) = pair().await;
    let (ticket, brought) = two.peers.expect(one.peers.fingerprint(), PATIENCE);
    let mut here = soon(one.peers.bare(&two.url(), ticket.clone())).await.unwrap();
    let mut there = soon(brought).await.unwrap();
    assert!(here.nodelay().unwrap() && there.nodelay().unwrap());
    spawn_blocking(move || {
        here.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        there.read_exact(&mut got).unwrap();
        there.write_all(&got).unwrap();
        here.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
    })
    .await
    .unwrap();
    let refused = PeerError::TicketRefused { node: two.url() };
    // Twice; wrong; late.
    assert_eq!(soon(one.peers.bare(&two.url(), ticket)).await.unwrap_err(), refused);
    let wrong: Ticket = serde_json::from_value(json!("00".repeat(32))).unwrap();
    assert_eq!(soon(one.peers.bare(&two.url(), wrong)).await.unwrap_err(), refused);
    let (late, brought) = two.peers.expect(one.peers.fingerprint(), Duration::ZERO);
    assert_eq!(soon(brought).await.unwrap_err(), PeerError::NotShown { from: one.peers.fingerprint() });
    assert_eq!(soon(one.peers.bare(&two.url(), late)).await.unwrap_err(), refused);
    // By another node: then it is good for nobody.
    let three = Fixture::start().await;
    let (ticket, brought) = two.peers.expect(one.peers.fingerprint(), PATIENCE);
    assert_eq!(soon(three.peers.bare(&two.url(), ticket.clone())).await.unwrap_err(), refused);
    let (from, by) = (one.peers.fingerprint(), three.peers.fingerprint());
    assert_eq!(soon(brought).await.unwrap_err(), PeerError::ShownByAnother { from, by });
    assert_eq!(soon(one.peers.bare(&two.url(), ticket)).await.unwrap_err(), refused);
    // After the end of trust.
    let (ticket, brought) = two.peers.expect(one.peers.fingerprint(), PATIENCE);
    two.peers.distrust(one.peers.fingerprint()).unwrap();
    assert!(matches!(soon(brought).await, Err(PeerError::NotAwaited { .. })));
    assert_eq!(soon(one.peers.bare(&two.url(), ticket)).await.unwrap_err(), refused);
}

/// Sends `bytes` to a node and waits until it ends the connection.
async fn ends(node: &Fixture, bytes: &[u8]) {
    let mut stream = tokio::net::TcpStream::connect(node.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    // Ended in order or in a hurry.
    let _ = soon(stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn strangers_neither_hang_nor_hinder() {
    let (one, two) = pair().await;
    let mut half = vec![0x16, 3, 1, 2, 0];
    half.extend([1; 100]);
    // Those that say nothing, or not enough, and wait: as many as one address may have, less what the others here need.
    let mut slow = Vec::new();
    for index in 0..serve::MAX_STRANGERS_OF_ONE - 8 {
        let mut stream = tokio::net::TcpStream::connect(two.address).await.unwrap();
        let begin = [&b""[..], &half, &PREAMBLE, &PREAMBLE[..3]][index % 4];
        stream.write_all(begin).await.unwrap();
        slow.push(stream);
    }
    let begin = Instant::now();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0x16; 100_000], &[b'N'; 100]] {
        ends(&two, garbage).await;
    }
    // Those who know what they do are served meanwhile.
    one.asks(&two).await.unwrap();
    assert!(begin.elapsed() < dial::HANDSHAKE_PATIENCE, "they have waited for the others");
    // More than one address may have are sent away at once.
    let mut more = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let mut stream = tokio::net::TcpStream::connect(two.address).await.unwrap();
        more.spawn(async move {
            let ended = timeout(Duration::from_secs(3), stream.read(&mut [0])).await;
            (matches!(ended, Ok(Ok(0) | Err(_))), stream)
        });
    }
    let mut refused = 0;
    while let Some(one) = more.join_next().await {
        let (ended, stream) = one.unwrap();
        refused += usize::from(ended);
        slow.push(stream);
    }
    assert!((20..40).contains(&refused), "{refused}");
    // And nobody waits for ever.
    for mut stream in slow {
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    one.peers.distrust(two.peers.fingerprint()).unwrap();
    one.trusts(&two);
    one.asks(&two).await.unwrap();
}
