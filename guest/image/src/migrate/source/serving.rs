//! After the hand-over: answers what the destination asks for.

use super::handover::ParkedTenant;
use super::{Hold, SourceAgent};
use crate::migrate::channels::Port;
use crate::migrate::state;
use crate::migrate::vault::Nobody;
use nacre_migrate::source::{RequestError, requested};
use nacre_migrate::wire::{self, TAG_BYTES};
use nacre_migrate::{DATA_OFFSET, Source, StepError};

/// Units that are answered on one channel before the next one's turn.
const ANSWERS_PER_LOOK: usize = 32;

/// Units that a request asks for, and how many of them were answered.
#[derive(Clone, Copy, Default)]
pub(super) struct Answering {
    asked: usize,
    answered: usize,
}

impl SourceAgent {
    /// Answers what the destination asks for.
    pub(super) fn serve(&mut self) -> bool {
        let ports = self.demand.iter_mut().chain(self.fetch.iter_mut().flatten());
        let mut any = false;
        // The demand channel first, and again before each lane: tasks wait for what is asked for there.
        for (port, answering) in ports.zip(&mut self.answering) {
            any |= port.flush().unwrap_or(false);
            any |= answer(&mut self.state, port, answering);
        }
        any
    }
}

/// Answers requests that came on a channel, as far as there is room; returns whether anything was done.
fn answer(slot: &mut Option<Source<Hold, ParkedTenant>>, port: &mut Port, answering: &mut Answering) -> bool {
    let connection = port.connection();
    let mut any = false;
    for _ in 0..ANSWERS_PER_LOOK {
        if answering.answered == answering.asked {
            *answering = Answering::default();
            let frame = match port.receive() {
                Ok(Some(frame)) => frame,
                Ok(None) => return any,
                Err(_) => {
                    port.give_up();
                    return true;
                }
            };
            if wire::Header::split(frame).is_ok_and(|(header, _)| header.kind == wire::Kind::Resume) {
                if !resumed(slot, frame) {
                    port.give_up();
                }
                return true;
            }
            let asked = match slot.as_mut() {
                Some(Source::Gone(gone)) => gone.requests(connection, frame).map(Iterator::count),
                Some(Source::Serving(serving)) => serving.requests(connection, frame).map(Iterator::count),
                _ => return any,
            };
            any = true;
            match asked {
                Ok(asked) => answering.asked = asked,
                Err(RequestError::Record(error)) if error.is_for_good() => port.give_up(),
                // What is refused is not answered.
                Err(_) => {}
            }
            if answering.asked == 0 {
                continue;
            }
        }
        let Some(unit) = requested(port.channel().received(), answering.answered) else {
            *answering = Answering::default();
            continue;
        };
        let Some(frame) = port.channel().room(DATA_OFFSET + unit.place.bytes() + TAG_BYTES) else {
            any |= port.flush().unwrap_or(false);
            return any;
        };
        let _ = state::read(unit.place, &mut frame[DATA_OFFSET..]);
        let sealed = match slot.as_mut() {
            Some(Source::Gone(gone)) => gone.answer(connection, unit, frame),
            Some(Source::Serving(serving)) => serving.answer(connection, unit, frame),
            _ => return any,
        };
        if let Ok(length) = sealed {
            port.channel().put(length);
            let _ = port.flush();
        }
        answering.answered += 1;
        any = true;
    }
    any
}

/// The destination has agreed to another epoch of a connection; false if these are not its words.
fn resumed(slot: &mut Option<Source<Hold, ParkedTenant>>, frame: &mut [u8]) -> bool {
    let Some(state) = slot.take() else { return true };
    let step = state.receive(frame, &mut Nobody);
    *slot = Some(step.state);
    !matches!(step.event, Err(StepError::Record(error)) if error.is_for_good())
}
