//! What stays behind when a tenant moves goes on: open connections of clients, and calls that somebody waits for. Their messages cross between the two
//! nodes' CVMs ([`nacre_vmm::tunnel`]); here are the streams for that, over the peer port.
//!
//! ```text
//! old node: Kept --- stream to where the tenant is, again when it breaks or the tenant moves on --> new node: accept_link
//! ```

use super::net::{Duplex, Net, NetError, TUNNEL};
use super::relay::Unconnected;
use super::{AskTunnel, Away, ClientAnswer, Migrations, relay};
use crate::names::hex;
use crate::runner::machine::Machine;
use crate::tenants::{Standing, Tenant};
use nacre_vmm::tunnel::{Adopted, Break, Kept, OriginId, Roster};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::sync::{mpsc, watch};

/// Pauses before a stream is made again: first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));
/// How often it is looked whether anybody still waits for something.
const LOOK: Duration = Duration::from_secs(1);
/// How long a stream may be broken, or refused, before what it was for is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is kept of tenants that left, by their uuid.
#[derive(Default)]
pub struct Tunnels {
    kept: Mutex<HashMap<String, Vec<Arc<Kept>>>>,
    /// Changes when some tenant has left or come back: what it left before is joined to where it is now.
    moved: watch::Sender<()>,
}

impl Tunnels {
    fn kept(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Kept>>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, uuid: &str) -> Vec<Arc<Kept>> {
        self.kept().get(uuid).cloned().unwrap_or_default()
    }

    fn remove(&self, uuid: &str, kept: &Arc<Kept>) {
        let mut all = self.kept();
        if let Some(of_tenant) = all.get_mut(uuid) {
            of_tenant.retain(|one| !Arc::ptr_eq(one, kept));
            if of_tenant.is_empty() {
                all.remove(uuid);
            }
        }
    }
}

/// Source, all tasks are parked: nothing more goes to the guest. Returns what the destination's host must know, encoded.
#[must_use]
pub fn hold(source: &Machine) -> Vec<u8> {
    source.cvm().hold().encode()
}

/// Source, the migration was aborted: what was held goes to the guest.
pub fn go_on(source: &Machine) {
    source.cvm().go_on();
}

/// What a source's [`hold`] returned.
///
/// # Errors
/// If it is none.
pub fn roster(bytes: &[u8]) -> Result<Roster, String> {
    Roster::decode(bytes).map_err(|error| format!("{error}; update the older node"))
}

impl Migrations {
    /// Source, the tenant runs elsewhere: what was held, and everything from now on, goes there.
    pub(super) fn leave(self: &Arc<Self>, tenant: &Arc<Tenant>, source: &Machine) {
        let kept = Arc::new(source.cvm().leave());
        self.tunnels.kept().entry(tenant.record.uuid.clone()).or_default().push(kept.clone());
        self.tunnels.moved.send_replace(());
        let (this, tenant) = (self.clone(), tenant.clone());
        tokio::spawn(async move {
            this.keep_joined(&tenant, &kept).await;
            this.tunnels.remove(&tenant.record.uuid, &kept);
        });
    }

    /// Destination, before its guest is given the Commit. The tenant may have left something here before.
    ///
    /// # Errors
    /// Why it can't be taken.
    pub(super) fn adopt(
        &self,
        uuid: &str,
        destination: &Machine,
        roster: &Roster,
    ) -> Result<Vec<Adopted>, String> {
        let kept = self.tunnels.of(uuid);
        let kept: Vec<&Kept> = kept.iter().map(|kept| &**kept).collect();
        let adopted = destination.cvm().adopt(roster, &kept).map_err(|error| error.to_string());
        self.tunnels.moved.send_replace(());
        adopted
    }

    /// Keeps a stream to where the tenant is, until nobody waits for anything.
    async fn keep_joined(&self, tenant: &Arc<Tenant>, kept: &Kept) {
        let Some(net) = self.net.clone() else { return };
        let (mut pause, mut refused) = (PAUSES.0, None);
        let mut moved = self.tunnels.moved.subscribe();
        while !kept.is_done() {
            moved.borrow_and_update();
            let away = match tenant.standing() {
                Standing::Away(away) if kept.is_distant() => away,
                // It is back, until it leaves again.
                _ => {
                    let _ = tokio::time::timeout(LOOK, moved.changed()).await;
                    continue;
                }
            };
            match self.join(&*net, tenant, &away, (kept, &mut moved)).await {
                Ok(true) => (pause, refused) = (PAUSES.0, None),
                Ok(false) => return,
                Err(Unconnected::Over(reason)) => {
                    tracing::info!(reason, "what stayed behind of a tenant ends");
                    return;
                }
                Err(Unconnected::Net(error)) => {
                    tracing::info!(%error, "what stayed behind of a tenant can't be joined to it yet");
                    if refused.get_or_insert_with(tokio::time::Instant::now).elapsed() > PATIENCE {
                        return;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Joins it by one stream, until that breaks, the tenant moves on or nobody waits any more; false if another one would not help.
    async fn join(
        &self,
        net: &dyn Net,
        tenant: &Arc<Tenant>,
        away: &Arc<Away>,
        (kept, moved): (&Kept, &mut watch::Receiver<()>),
    ) -> Result<bool, Unconnected> {
        let question = AskTunnel {
            tenant: tenant.name().clone(),
            uuid: tenant.record.uuid.clone(),
            origin: hex(&kept.origin().0),
        };
        let question = serde_json::to_value(question).map_err(|error| NetError(error.to_string()))?;
        let mut stream = relay::connect(net, &self.store, tenant, away.clone(), (TUNNEL, question)).await?;
        let (tell, mut breaks) = mpsc::unbounded_channel();
        let broke = |error: std::io::Error| NetError(format!("a tunnel to another node: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(broke)?;
        let on_break = move |how: Break| {
            let _ = tell.send(how.is_final());
        };
        kept.attach(ours, on_break).map_err(broke)?;
        let mut local = local(theirs).map_err(broke)?;
        let carry = copy_bidirectional(&mut local, &mut stream);
        tokio::pin!(carry);
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                Some(is_final) = breaks.recv() => return Ok(!is_final),
                _ = &mut carry => return Ok(true),
                _ = moved.changed() => {}
                _ = look.tick() => {}
            }
            let moved_on = !matches!(tenant.standing(), Standing::Away(now) if *now == **away);
            if kept.is_done() || moved_on || !kept.is_distant() {
                return Ok(true);
            }
        }
    }

    /// Serves what stayed behind at another node of a tenant that is here.
    pub async fn serve_tunnel(&self, question: AskTunnel, mut stream: Box<dyn Duplex>) {
        let accepted = self.accept_tunnel(&question);
        let answer = match &accepted {
            Ok(_) => ClientAnswer::Connected,
            Err(answer) => answer.clone(),
        };
        if relay::say(&mut *stream, &answer).await.is_err() {
            return;
        }
        let Ok((machine, origin, theirs, mut breaks)) = accepted else { return };
        let this_one = streams_of(&machine, origin);
        if let Ok(mut local) = local(theirs) {
            let mut is_final = false;
            tokio::select! {
                how = breaks.recv() => is_final = how.unwrap_or(false),
                // Its other end has closed it, or makes another one.
                _ = copy_bidirectional(&mut local, &mut stream) => {}
            }
            if is_final {
                machine.cvm().lose(origin);
                return;
            }
        }
        // A CVM that the tenant has left meanwhile is not kept for that, with all its memory.
        let left = Arc::downgrade(&machine);
        drop(machine);
        tokio::time::sleep(PATIENCE).await;
        // Who serves a later stream waits for that one.
        if let Some(machine) = left.upgrade()
            && streams_of(&machine, origin) == this_one
            && !machine.has_ended()
        {
            machine.cvm().lose(origin);
        }
    }

    fn accept_tunnel(
        &self,
        question: &AskTunnel,
    ) -> Result<(Arc<Machine>, OriginId, UnixStream, mpsc::UnboundedReceiver<bool>), ClientAnswer> {
        let refused = |reason: String| ClientAnswer::Refused { reason };
        let tenant = self.tenants.same(&question.tenant, &question.uuid);
        let tenant = tenant.ok_or_else(|| refused("the tenant is not here".into()))?;
        if let Standing::Away(away) = tenant.standing() {
            return Err(ClientAnswer::Moved { away: (*away).clone() });
        }
        let origin = super::bytes_of(&question.origin).and_then(|bytes| bytes.try_into().ok());
        let origin = OriginId(origin.ok_or_else(|| refused("that is no name of an origin".into()))?);
        // The CVM that had what was left, and nobody else, can go on with it.
        let over = |reason: String| ClientAnswer::Over { reason };
        let machine = self.runner.machine(&tenant).ok_or_else(|| over("its CVM has ended".into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
        let (tell, breaks) = mpsc::unbounded_channel();
        let on_break = move |how: Break| {
            let _ = tell.send(how.is_final());
        };
        machine.cvm().accept_link(origin, ours, on_break).map_err(|error| match error.kind() {
            ErrorKind::NotFound => over(error.to_string()),
            _ => refused(error.to_string()),
        })?;
        Ok((machine, origin, theirs, breaks))
    }
}

/// How many streams an origin has had so far.
fn streams_of(machine: &Machine, origin: OriginId) -> u64 {
    let all = machine.cvm().relayed();
    all.iter().find(|one| one.origin == origin).map_or(0, |one| one.streams)
}

fn local(stream: UnixStream) -> std::io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}
