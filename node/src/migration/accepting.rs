//! Before a tenant comes: what a destination checks, stores and launches until both guests talk to each other.

use super::line::{Ears, Mouth, PATIENCE};
use super::net::{Net, NetError};
use super::{
    DestinationWord, InEvent, InState, Incoming, Migrations, Offer, Room, SourceWord, Staged, Tickets,
    admission, bytes_of,
};
use crate::names::{Digest, EntityName, MigrationId, now_ms};
use crate::runner::Arriving;
use crate::services::Door;
use crate::store::modules::Draft;
use crate::store::{EditError, StoreError};
use nacre_vmm::migration::{MoveNews, Moving, Streams};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Largest module that is taken, in bytes.
const MAX_MODULE_BYTES: u64 = 1 << 30;
/// News of the guest that wait to be dealt with.
const MAX_NEWS: usize = 1024;
/// First guess of the bandwidth, in bytes per second.
const BANDWIDTH: u64 = 1 << 30;
/// Between attempts to write that it failed, when the disk refuses.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// What was made ready for a tenant.
pub(super) struct Ready {
    pub id: MigrationId,
    pub staged: Staged,
    pub listeners: HashMap<EntityName, Arc<Door>>,
    pub arriving: Arriving,
    pub moving: Moving,
    pub news: mpsc::Receiver<MoveNews>,
    pub words: Words,
    pub room: Room,
}

/// What the source says, until the line breaks.
pub(super) type Words = mpsc::Receiver<Result<SourceWord, NetError>>;

/// Takes an offer: checks it, takes what of the tenant's records and modules comes, launches a CVM and connects it.
///
/// # Errors
/// Why not, for the other node; nothing of it stays here.
pub(super) async fn accept(
    manager: &Arc<Migrations>,
    (from, reading): (Digest, OwnedSemaphorePermit),
    offer: Offer,
    mut ears: Ears,
    mouth: &mut Mouth,
) -> Result<Ready, String> {
    if manager.is_stopping() {
        return Err(admission::STOPPING.into());
    }
    let room = manager.take_room(offer.staged.tenant.limits.memory_bytes)?;
    drop(reading);
    admission::check(manager, &offer)?;
    admission::wait_for_earlier(manager, &offer.staged.tenant.name).await?;
    let net = manager.net.clone().ok_or("that node listens to no nodes")?;
    let Offer { id, mode, lanes, bandwidth, staged, .. } = offer;
    let mut listeners = HashMap::new();
    for service in &staged.services {
        let listener = manager.services.listen_for(&staged.tenant.name, service.port).await;
        let listener = listener.map_err(|error| {
            let address = manager.services.address(service.port);
            format!(
                "{address} can't be listened on at that node: {error}; free the port, or choose another node"
            )
        })?;
        listeners.insert(service.name.clone(), listener);
    }
    let drafts = code(manager, &net, &staged, &mut ears, mouth).await?;
    let mut words = ears.listen();
    let (tenant, uuid) = (staged.tenant.name.clone(), staged.tenant.uuid.clone());
    let record = Incoming { id, tenant, uuid, from, mode, begun_ms: now_ms(), state: InState::Receiving };
    manager.store.stage(record, staged.clone(), drafts).await.map_err(|error| match error {
        StoreError::Edit(EditError::Exists) => admission::ON_ITS_WAY.to_owned(),
        StoreError::Edit(EditError::Missing) => {
            "a module was removed at that node meanwhile; try again".to_owned()
        }
        error => error.to_string(),
    })?;
    let connected = connect(manager, &net, from, &staged, (lanes, bandwidth), (&mut words, mouth)).await;
    match connected {
        Ok((arriving, moving, news)) => {
            Ok(Ready { id, staged, listeners, arriving, moving, news, words, room })
        }
        Err(reason) => {
            fail(manager, id, &reason).await;
            Err(reason)
        }
    }
}

/// Writes that it came to nothing, as soon as the disk takes it.
pub(super) async fn fail(manager: &Migrations, id: MigrationId, reason: &str) {
    let event = InEvent::Failed(reason.to_owned());
    if let Err(error) = manager.store.step_in(id, event.clone()).await {
        tracing::error!(%error, "the end of a migration is not kept; it is tried again");
        let store = manager.store.clone();
        tokio::spawn(async move {
            while let Err(StoreError::Database(_)) = store.step_in(id, event.clone()).await {
                tokio::time::sleep(STORE_PAUSE).await;
            }
        });
    }
}

/// Has the modules sent that are not here.
async fn code(
    manager: &Arc<Migrations>,
    net: &Arc<dyn Net>,
    staged: &Staged,
    ears: &mut Ears,
    mouth: &mut Mouth,
) -> Result<Vec<Draft>, String> {
    let said = |error: NetError| error.0;
    let wanted: HashMap<Digest, u64> =
        staged.modules().filter(|(digest, _)| !manager.store.modules().has(digest)).collect();
    let modules = wanted.keys().copied().collect();
    mouth.say(&DestinationWord::Wanted { modules, fingerprint: net.own() }).await.map_err(said)?;
    let (mut drafts, mut came) = (Vec::new(), HashSet::new());
    loop {
        match ears.hear_soon().await.map_err(said)? {
            SourceWord::Code { digest, bytes } => {
                if wanted.get(&digest) != Some(&bytes) || bytes > MAX_MODULE_BYTES || !came.insert(digest) {
                    return Err("a module came that was not asked for; update the older node".into());
                }
                let module = ears.module(bytes as usize).await.map_err(said)?;
                let store = manager.store.clone();
                let draft = move || {
                    let sum = Digest(<sha2::Sha256 as sha2::Digest>::digest(&module).into());
                    if sum != digest {
                        return Err("a module came damaged; try again".to_owned());
                    }
                    store.modules().draft(digest, &module).map_err(|error| error.to_string())
                };
                let drafted = tokio::task::spawn_blocking(draft).await;
                drafts.push(drafted.map_err(|error| error.to_string())??);
            }
            SourceWord::Begin => return Ok(drafts),
            SourceWord::Aborted { reason } => return Err(reason),
            _ => return Err("a word came out of turn; update the older node".into()),
        }
    }
}

/// Launches the receiver and connects it.
async fn connect(
    manager: &Arc<Migrations>,
    net: &Arc<dyn Net>,
    from: Digest,
    staged: &Staged,
    (lanes, bandwidth): (usize, Option<u64>),
    (words, mouth): (&mut Words, &mut Mouth),
) -> Result<(Arriving, Moving, mpsc::Receiver<MoveNews>), String> {
    let manifest = bytes_of(&staged.manifest).ok_or("the manifest is damaged; deploy again")?;
    let tenant = &staged.tenant;
    let arriving = manager.runner.receive(&tenant.name, &tenant.limits, manifest.into()).await;
    let arriving = arriving.map_err(|error| format!("that node can't launch a CVM for it: {error}"))?;
    let connected = async {
        let (mut tickets, mut awaited) = (Vec::new(), Vec::new());
        for _ in 0..lanes + 2 {
            let (ticket, stream) = net.expect(from, PATIENCE)?;
            tickets.push(ticket);
            awaited.push(tokio::spawn(stream));
        }
        let mut tickets = tickets.into_iter();
        let mut next = || tickets.next().unwrap_or_default();
        let (control, demand) = (next(), next());
        mouth.say(&DestinationWord::Ready(Tickets { control, demand, lanes: tickets.collect() })).await?;
        let mut streams = Vec::new();
        for stream in awaited {
            // A source that is gone makes no more connections.
            let stream = tokio::select! {
                biased;
                stream = stream => stream,
                word = words.recv() => return Err(NetError(out_of_turn(word))),
            };
            streams.push(stream.map_err(|error| NetError(error.to_string()))??);
        }
        let lanes = streams.split_off(2);
        let (Some(demand), Some(control)) = (streams.pop(), streams.pop()) else {
            return Err(NetError("connections are missing".into()));
        };
        let (tell, news) = mpsc::channel(MAX_NEWS);
        let on_news = move |news| drop(tell.try_send(news));
        let streams = Streams { control, demand, lanes };
        let cvm = arriving.machine().cvm();
        let moving = cvm.receive_tenant(streams, bandwidth.unwrap_or(BANDWIDTH), on_news);
        Ok((moving.map_err(|error| NetError(error.to_string()))?, news))
    };
    match connected.await {
        Ok((moving, news)) => Ok((arriving, moving, news)),
        Err(NetError(reason)) => {
            arriving.machine().stop().await;
            Err(reason)
        }
    }
}

/// Why a migration ends about which the source says something while it is to connect.
fn out_of_turn(word: Option<Result<SourceWord, NetError>>) -> String {
    match word {
        Some(Ok(SourceWord::Aborted { reason })) => reason,
        Some(Err(NetError(reason))) => reason,
        _ => "a word came out of turn; update the older node".into(),
    }
}
