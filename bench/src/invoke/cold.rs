//! First calls through a node: of an action whose code its tenant's CVM has not seen, and of a tenant that has no CVM yet. All
//! modules are compiled when they are deployed.

use super::{Options, arm};
use crate::child::{Node, Tenant, exchange};
use crate::host::binary_form;
use crate::load::client::Connection;
use crate::load::runtime;
use crate::programs::{ACTION, ECHO};
use crate::report::{Row, Target, Unit};
use crate::summary::Summary;
use crate::{BenchError, Progress};
use serde_json::json;
use std::time::Instant;
use tokio::net::TcpStream;

/// Calls that make a CVM and its connection warm.
const WARM_UP: usize = 200;
/// Warm calls beside each first one.
const WARM: usize = 20;
/// How much longer than a warm call the first one of an action may take.
const ACTION_TARGET: Target = Target::Value(1e6);
/// How long the first call of a tenant may take.
const TENANT_TARGET: Target = Target::Value(20e6);

pub(super) fn measure(options: &Options, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let node = Node::start(&options.nacre, &directory.path().join("node"))?;
    runtime()?.block_on(async {
        let mut rows = Vec::new();
        let small = binary_form(ECHO.as_bytes())?;
        for (what, module) in [("the smallest", small.as_slice()), ("a C program's", ACTION)] {
            rows.extend(actions(&node, what, module, options.cold_actions / 2, progress).await?);
        }
        rows.extend(tenants(&node, &small, options.cold_tenants, progress).await?);
        Ok(rows)
    })
}

/// A call's time in nanoseconds.
async fn call(connection: &mut Connection<TcpStream>, request: &[u8]) -> Result<f64, BenchError> {
    let begin = Instant::now();
    exchange(connection, request).await?;
    Ok(begin.elapsed().as_nanos() as f64)
}

/// The module with a section of its own, so that it is another one.
fn distinct(module: &[u8], number: usize) -> Vec<u8> {
    let number = format!("{number:08}");
    // A custom section: its id, its length, the length of its name, its name, what is in it.
    [module, &[0, 10, 1, b'n'], number.as_bytes()].concat()
}

async fn actions(
    node: &Node,
    what: &str,
    module: &[u8],
    count: usize,
    progress: &dyn Progress,
) -> Result<Vec<Row>, BenchError> {
    let tenant = node.add_tenant("actions", json!({})).await?;
    let request = |name: &str| Node::invocation(&tenant, name, b"{\"x\":1}");
    node.put_action(&tenant, "other", module).await?;
    let mut connection = node.connect().await?;
    for _ in 0..WARM_UP {
        call(&mut connection, &request("other")).await?;
    }
    let (mut first, mut warm, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        progress.step("first calls of actions");
        let name = format!("action-{number}");
        node.put_action(&tenant, &name, &distinct(module, number)).await?;
        // What deploying left undone, and what it pushed out of caches, is not the call's.
        for _ in 0..WARM {
            call(&mut connection, &request("other")).await?;
        }
        let cold = call(&mut connection, &request(&name)).await?;
        let mut next = Vec::with_capacity(WARM);
        for _ in 0..WARM {
            next.push(call(&mut connection, &request(&name)).await?);
        }
        let usual = Summary::of(&next).map_or(f64::NAN, |summary| summary.median);
        first.push(cold);
        warm.push(usual);
        beyond.push(cold - usual);
    }
    node.remove_tenant(&tenant).await?;
    let name = |text: &str| format!("first call of {what} action in a warm CVM{text}");
    let rows = [
        Row::new(name(": beyond a warm one"), arm::NODE, Unit::Nanoseconds, &beyond)
            .map(|row| row.target(ACTION_TARGET)),
        Row::new(name(""), arm::NODE, Unit::Nanoseconds, &first)
            .map(|row| row.against("warm", &first, &warm)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

async fn tenants(
    node: &Node,
    module: &[u8],
    count: usize,
    progress: &dyn Progress,
) -> Result<Option<Row>, BenchError> {
    let mut connection = node.connect().await?;
    let mut first = Vec::with_capacity(count);
    for number in 0..count {
        progress.step("first calls of tenants");
        let tenant: Tenant = node.add_tenant(&format!("tenant-{number}"), json!({})).await?;
        node.put_action(&tenant, "echo", module).await?;
        first.push(call(&mut connection, &Node::invocation(&tenant, "echo", b"{\"x\":1}")).await?);
        node.remove_tenant(&tenant).await?;
    }
    let row = Row::new("first call of a tenant, whose CVM is launched", arm::NODE, Unit::Nanoseconds, &first);
    Ok(row.map(|row| row.target(TENANT_TARGET)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_modules_are_modules() {
        let module = binary_form(ECHO.as_bytes()).unwrap();
        let [one, two] = [1, 2].map(|number| distinct(&module, number));
        assert_ne!(one, two);
        let engine = crate::host::HostEngine::same().unwrap();
        let echoed = engine.load(&one).unwrap().call(Vec::new(), b"{\"a\":1}".to_vec()).unwrap();
        assert_eq!(echoed, b"{\"a\":1}");
    }
}
