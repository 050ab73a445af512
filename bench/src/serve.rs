//! The reference of the node's warm path: an HTTP server on the same engine, with its pool of instances, in one ordinary
//! process. Each request gets a fresh instance, its body as standard input, and answers with standard output: what
//! `wasmtime serve` does, with the node's convention for programs. It has no tenants, keys, limits or records.

use crate::BenchError;
use crate::host::{HostEngine, HostProgram};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Longest body of a request in bytes.
const MAX_BODY: usize = 1 << 20;

/// Holds so much memory until the process is killed.
pub fn hold(bytes: usize) -> ! {
    let memory = vec![1u8; bytes];
    loop {
        std::hint::black_box(&memory);
        std::thread::park();
    }
}

/// Serves the program until the process is killed. `ready` is told the address: loopback, a port of the kernel's choice.
///
/// # Errors
/// If the program can't be loaded, or no port be had.
pub fn serve(source: &[u8], ready: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let program = Arc::new(HostEngine::pooled()?.load(source)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("reference").build();
    runtime.map_err(BenchError::system("the reference server's threads"))?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(BenchError::system("a port"))?;
        ready(listener.local_addr().map_err(BenchError::system("a port"))?);
        loop {
            let (stream, _) = listener.accept().await.map_err(BenchError::system("a connection"))?;
            stream.set_nodelay(true).map_err(BenchError::system("a connection"))?;
            let program = program.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(&program, request));
                // A client that goes away is none of the server's concern.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

async fn answer(
    program: &HostProgram,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (status, body) = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Err(error) => (StatusCode::PAYLOAD_TOO_LARGE, error.to_string().into()),
        Ok(body) => match program.call(environment(), body.to_bytes().to_vec()) {
            Ok(output) => (StatusCode::OK, output),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into()),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// As many variables as the node gives to actions.
fn environment() -> Vec<(String, String)> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        pair("__OW_ACTION_NAME", "/guest/echo"),
        pair("__OW_ACTION_VERSION", "0.0.1"),
        pair("__OW_ACTIVATION_ID", "0123456789abcdef0123456789abcdef"),
        pair("__OW_API_HOST", "http://127.0.0.1:3233"),
        pair("__OW_DEADLINE", "1700000000000"),
        pair("__OW_NAMESPACE", "guest"),
    ]
}
