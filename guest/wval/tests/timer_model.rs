//! [`TimerQueue`] against a plain model: an ordered map of the running timers.
#![cfg(not(loom))]

use std::collections::BTreeMap;

use nacre_wval::*;
use proptest::prelude::*;

const SLOTS: u32 = 12;

#[derive(Debug, Clone)]
enum Op {
    Arm { slot: u32, seq: u64, deadline: u64 },
    Cancel { slot: u32, seq: u64 },
    Advance { by: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let slot = 0..SLOTS + 1;
    prop_oneof![
        4 => (slot.clone(), 1u64..60, 0u64..100)
            .prop_map(|(slot, seq, deadline)| Op::Arm { slot, seq, deadline }),
        1 => (slot, 1u64..60).prop_map(|(slot, seq)| Op::Cancel { slot, seq }),
        1 => (0u64..8).prop_map(|by| Op::Advance { by }),
    ]
}

/// Running timers by (deadline, order of arming), and each slot's newest sequence number.
#[derive(Default)]
struct Model {
    running: BTreeMap<(u64, u64), (TimerToken, TaskRef)>,
    newest: [u64; SLOTS as usize],
    orders: u64,
}

impl Model {
    fn drop_slot(&mut self, slot: u32) -> bool {
        let before = self.running.len();
        self.running.retain(|_, (t, _)| t.slot != slot);
        before != self.running.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_an_ordered_map(ops in proptest::collection::vec(op(), 0..120)) {
        let mut mem = vec![TimerSlot::new(); SLOTS as usize];
        let mut queue = TimerQueue::new(&mut mem);
        let (mut model, mut now) = (Model::default(), 0);
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Arm { slot, seq, deadline } => {
                    let (token, task) = (TimerToken { slot, seq }, TaskRef::new(n as u64 + 1).unwrap());
                    let got = queue.arm(token, now + deadline, task);
                    let want = match model.newest.get(slot as usize) {
                        None => Err(TimerError::NoSuchSlot(slot)),
                        Some(&newest) if seq <= newest => Ok(Arm::Stale),
                        Some(_) => {
                            model.newest[slot as usize] = seq;
                            model.drop_slot(slot);
                            model.running.insert((now + deadline, model.orders), (token, task));
                            model.orders += 1;
                            Ok(Arm::Armed)
                        }
                    };
                    prop_assert_eq!(got, want);
                }
                Op::Cancel { slot, seq } => {
                    let got = queue.cancel(TimerToken { slot, seq });
                    let want = match model.newest.get(slot as usize) {
                        None => Err(TimerError::NoSuchSlot(slot)),
                        Some(&newest) if seq < newest => Ok(false),
                        Some(_) => {
                            model.newest[slot as usize] = seq;
                            Ok(model.drop_slot(slot))
                        }
                    };
                    prop_assert_eq!(got, want);
                }
                Op::Advance { by } => {
                    now += by;
                    while let Some((&(deadline_ns, order), &(token, task))) = model.running.first_key_value() {
                        if deadline_ns > now {
                            break;
                        }
                        model.running.remove(&(deadline_ns, order));
                        prop_assert_eq!(queue.pop_expired(now), Some(Expired { token, task, deadline_ns }));
                    }
                    prop_assert_eq!(queue.pop_expired(now), None);
                }
            }
            prop_assert_eq!(queue.len(), model.running.len());
            prop_assert_eq!(queue.next_deadline(), model.running.first_key_value().map(|(k, _)| k.0));
        }
    }
}
