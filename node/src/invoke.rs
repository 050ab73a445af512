//! One call of an action, from a checked request to an activation that the store has.
//!
//! A call goes on when its client goes away: it runs in a task of its own. What is acknowledged when: see [`crate::store`].

use crate::limits::MAX_PARAMETERS_BYTES;
use crate::migration::Migrations;
use crate::names::{ActivationId, now_ms};
use crate::outcome::End;
use crate::records::{Action, Activation, KeyValue, Pending};
use crate::runner::{Moved, Ran, Request, Runner};
use crate::store::{Store, StoreError};
use crate::tenants::{Share, Tenant};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};

/// Why a call is refused before it begins.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As many run as the tenant may have.
    #[error("Too many concurrent requests in flight (count: {count}, allowed: {allowed}).")]
    Concurrency {
        /// How many.
        count: u64,
        /// How many there may be.
        allowed: u32,
    },
    /// Its parameters, defaults included, are too large.
    #[error("The parameters have {0} bytes, an action takes {MAX_PARAMETERS_BYTES} at most; send less.")]
    TooLarge(usize),
    /// The node is going down.
    #[error("The node is stopping; try again when it is back.")]
    Stopping,
    /// The tenant runs at another node since; the call did not begin.
    #[error("The tenant has moved to another node meanwhile; call again.")]
    Moved,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A call that was accepted.
pub enum Invoked {
    /// It is over.
    Done(Arc<Activation>),
    /// It goes on, and will end in the store.
    Accepted(ActivationId),
}

/// A future that goes on by itself when whoever waits for it goes away. Until then it runs within its waiter's task: a call that
/// is waited for costs no task of its own, and none has to be woken at its end.
struct Detached<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> Detached<T> {
    fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // After its end nobody asks again.
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let output = ready!(future.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let future = self.0.take().filter(|_| !std::thread::panicking());
        if let (Some(future), Ok(runtime)) = (future, tokio::runtime::Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}

/// Calls actions.
pub struct Invoker {
    store: Arc<Store>,
    runner: Arc<Runner>,
    migrations: Arc<Migrations>,
    api_host: String,
    /// Every call under way holds a clone; taken when the node stops.
    under_way: std::sync::Mutex<Option<mpsc::Sender<()>>>,
    drained: Mutex<mpsc::Receiver<()>>,
}

impl Invoker {
    /// `api_host` is what actions are told in `__OW_API_HOST`.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        runner: Arc<Runner>,
        migrations: Arc<Migrations>,
        api_host: String,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let (under_way, drained) = (std::sync::Mutex::new(Some(sender)), Mutex::new(receiver));
        Self { store, runner, migrations, api_host, under_way, drained }
    }

    /// Calls an action. With `patience` it waits that long for the end.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn invoke(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        action: &Arc<Action>,
        parameters: &[u8],
        patience: Option<Duration>,
    ) -> Result<Invoked, Refused> {
        let under_way = self.under_way.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let under_way = under_way.ok_or(Refused::Stopping)?;
        let allowed = tenant.limits().concurrency;
        let share = tenant.begin_activation().map_err(|count| Refused::Concurrency { count, allowed })?;
        let stdin = with_defaults(&action.parameters, parameters);
        if stdin.len() > MAX_PARAMETERS_BYTES {
            return Err(Refused::TooLarge(stdin.len()));
        }
        let id = ActivationId::new();
        let start_ms = now_ms();
        let pending = || Pending {
            action: action.name.clone(),
            version: action.version,
            start_ms,
            limits: action.limits,
        };
        let held = Holds { _share: share, under_way, accepted: Arc::default() };
        let accepted = held.accepted.clone();
        let Some(patience) = patience else {
            self.store.begin(tenant.owner().clone(), id, pending()).await?;
            accepted.store(true, Ordering::SeqCst);
            drop(Detached::new(self.call(tenant, action, id, start_ms, stdin, held)));
            return Ok(Invoked::Accepted(id));
        };
        let mut call = Detached::new(self.call(tenant, action, id, start_ms, stdin, held));
        if let Ok(ended) = tokio::time::timeout(patience, &mut call).await {
            return ended.map(Invoked::Done).map_err(|Moved| Refused::Moved);
        }
        // It goes on while the store works.
        accepted.store(true, Ordering::SeqCst);
        drop(call);
        self.store.begin(tenant.owner().clone(), id, pending()).await?;
        Ok(Invoked::Accepted(id))
    }

    /// A call to its end, with what it holds till then. One that did not begin because its tenant has moved leaves no trace, unless somebody was told that
    /// it was accepted.
    fn call(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        action: &Arc<Action>,
        id: ActivationId,
        start_ms: u64,
        stdin: Vec<u8>,
        held: Holds,
    ) -> impl Future<Output = Result<Arc<Activation>, Moved>> + Send + use<> {
        let (this, tenant, action) = (self.clone(), tenant.clone(), action.clone());
        async move {
            let ran = this.run(&tenant, &action, id, start_ms, stdin, &held.accepted).await;
            let activation = Arc::new(ran?);
            if let Err(error) = this.store.record(tenant.owner().clone(), activation.clone()).await {
                tracing::error!(%error, "an activation is not kept");
            }
            let Holds { _share, under_way, .. } = held;
            if !this.migrations.is_quiet() {
                let (this, tenant, ended) = (this.clone(), tenant.clone(), activation.clone());
                tokio::spawn(async move {
                    this.migrations.tell_owner(&tenant, &ended).await;
                    drop(under_way);
                });
            }
            Ok(activation)
        }
    }

    async fn run(
        &self,
        tenant: &Arc<Tenant>,
        action: &Action,
        id: ActivationId,
        start_ms: u64,
        stdin: Vec<u8>,
        accepted: &AtomicBool,
    ) -> Result<Activation, Moved> {
        let begin = Instant::now();
        let limits = action.limits;
        let texts = Texts::new(tenant, action, id, start_ms);
        let [path, version, id_text, deadline] = texts.parts();
        let request = Request {
            args: &[action.name.as_str()],
            env: &[
                ("__OW_ACTION_NAME", path),
                ("__OW_ACTION_VERSION", version),
                ("__OW_ACTIVATION_ID", id_text),
                ("__OW_API_HOST", &self.api_host),
                ("__OW_DEADLINE", deadline),
                ("__OW_NAMESPACE", tenant.name().as_str()),
            ],
            stdin: &stdin,
            wall_limit: Duration::from_millis(limits.timeout),
            memory_limit: limits.memory << 20,
            max_logs: (limits.logs as usize) << 20,
        };
        let ran = match self.runner.run(tenant, &action.module, request).await {
            Ok(ran) => ran,
            Err(Moved) if accepted.load(Ordering::SeqCst) => not_begun(begin),
            Err(Moved) => return Err(Moved),
        };
        let end_ms = start_ms + begin.elapsed().as_millis() as u64;
        let outcome = ran.left.outcome(&limits, end_ms);
        let micros = |duration: Duration| duration.as_micros() as u64;
        crate::metrics::activation(outcome.status, begin.elapsed(), ran.wait, ran.init.is_some());
        Ok(Activation {
            id,
            action: action.name.clone(),
            version: action.version,
            start_ms,
            end_ms,
            status: outcome.status,
            result: outcome.result,
            logs: outcome.logs,
            limits,
            timeout: outcome.timeout,
            cpu_us: micros(ran.cpu),
            wait_us: micros(ran.wait),
            init_us: ran.init.map(micros),
        })
    }

    /// Takes no more calls and waits for those under way, at most `limit`. Whether all ended.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.under_way.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let mut drained = self.drained.lock().await;
        tokio::time::timeout(limit, drained.recv()).await.is_ok()
    }
}

/// What a call holds until its end.
struct Holds {
    _share: Share,
    under_way: mpsc::Sender<()>,
    /// Its caller has its id, and asks for its end.
    accepted: Arc<AtomicBool>,
}

/// What there is of a call that was accepted and did not begin.
fn not_begun(since: Instant) -> Ran {
    let end = End::Lost("The tenant moved to another node before the call began; call again.".into());
    Ran::failed(end, since)
}

/// What an action's environment says of its call, in one piece.
struct Texts {
    all: String,
    ends: [usize; 4],
}

impl Texts {
    fn new(tenant: &Tenant, action: &Action, id: ActivationId, start_ms: u64) -> Self {
        let mut all = String::with_capacity(128);
        let deadline = start_ms.saturating_add(action.limits.timeout);
        let parts: [&dyn Display; 4] =
            [&format_args!("/{}/{}", tenant.name(), action.name), &action.version, &id, &deadline];
        let ends = parts.map(|part| {
            // Writing to a string does not fail.
            let _ = write!(all, "{part}");
            all.len()
        });
        Self { all, ends }
    }

    fn parts(&self) -> [&str; 4] {
        let mut start = 0;
        self.ends.map(|end| &self.all[std::mem::replace(&mut start, end)..end])
    }
}

/// An action's parameters: those of the call, and the defaults for what it does not give. `parameters` is a JSON object.
fn with_defaults(defaults: &[KeyValue], parameters: &[u8]) -> Vec<u8> {
    if defaults.is_empty() {
        return parameters.to_vec();
    }
    let mut merged: BTreeMap<&str, &RawValue> =
        defaults.iter().map(|pair| (pair.key.as_str(), &*pair.value)).collect();
    let given: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(parameters).unwrap_or_default();
    merged.extend(given.iter().map(|(key, value)| (key.as_str(), &**value)));
    // A map of JSON texts always serialises.
    serde_json::to_vec(&merged).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_goes_on_without_its_waiter() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(Detached::new(async { 7 }).await, 7);
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            let (tell, told) = tokio::sync::oneshot::channel();
            let mut call = Detached::new(async move {
                gone.await.unwrap();
                tell.send("done").unwrap();
            });
            assert!(tokio::time::timeout(Duration::ZERO, &mut call).await.is_err());
            drop(call);
            go.send(()).unwrap();
            assert_eq!(told.await, Ok("done"));
        });
    }

    #[test]
    fn a_call_has_the_last_word_over_defaults() {
        let pair = |key: &str, json: &str| KeyValue::new(key, json.to_owned()).unwrap();
        let defaults = [pair("a", "1"), pair("b", "[2]")];
        assert_eq!(with_defaults(&[], b"{ \"x\": 1.0 }"), b"{ \"x\": 1.0 }");
        assert_eq!(with_defaults(&defaults, b"{}"), br#"{"a":1,"b":[2]}"#);
        assert_eq!(
            with_defaults(&defaults, br#"{"a":null,"c":"\u00e9"}"#),
            br#"{"a":null,"b":[2],"c":"\u00e9"}"#
        );
    }
}
