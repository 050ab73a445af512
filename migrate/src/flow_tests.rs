use super::*;

const GIB: u64 = 1 << 30;

fn measured() -> Measured {
    Measured {
        rounds: 2,
        memory_bytes: 4 * GIB,
        sent_bytes: 5 * GIB,
        dirty_bytes: GIB / 4,
        least: Least { dirty_bytes: GIB, idle_rounds: 0 },
        dirty_rate: GIB / 8,
        bandwidth: GIB,
        carried: GIB,
        downtime_goal: Duration::from_millis(100),
    }
}

#[test]
fn modes_without_rounds_hand_over_at_once() {
    for mode in [Mode::StopAndCopy, Mode::PostCopy] {
        assert_eq!(decide(mode, &Measured { rounds: 0, ..measured() }), Decision::HandOver(Why::Mode));
    }
    for mode in [Mode::PreCopy, Mode::Hybrid] {
        let before = Measured { rounds: 0, dirty_bytes: 0, ..measured() };
        assert_eq!(decide(mode, &before), Decision::AnotherRound, "the first round is not optional");
    }
}

#[test]
fn rounds_go_on_while_they_pay() {
    for mode in [Mode::PreCopy, Mode::Hybrid] {
        assert_eq!(decide(mode, &measured()), Decision::AnotherRound);
        for (dirty_rate, pays) in [(GIB / 4 * 3 - 1, true), (GIB / 4 * 3, false), (u64::MAX, false)] {
            let expected = if pays { Decision::AnotherRound } else { Decision::HandOver(Why::NotShrinking) };
            assert_eq!(decide(mode, &Measured { dirty_rate, ..measured() }), expected);
        }
        let idle = |dirty_bytes, idle_rounds| {
            let least = Least { dirty_bytes: GIB / 8, idle_rounds };
            decide(mode, &Measured { dirty_bytes, least, ..measured() })
        };
        let over = Decision::HandOver(Why::NotShrinking);
        assert_eq!(idle(GIB / 8, 1), Decision::AnotherRound);
        for rounds in 2..20 {
            let few = GIB / 8 + GIB / 32 * u64::from(rounds - 1);
            assert_eq!(idle(few, rounds), over);
            assert_eq!(idle(few + 1, rounds), Decision::AnotherRound);
        }
    }
}

#[test]
fn little_enough_is_handed_over() {
    let at = |mode, dirty_bytes| decide(mode, &Measured { dirty_bytes, ..measured() });
    let small = Decision::HandOver(Why::SmallEnough);
    // 2 ms and 100 ms of 1 GiB per second.
    assert_eq!(at(Mode::Hybrid, GIB / 500), small);
    assert_eq!(at(Mode::Hybrid, GIB / 500 + 1), Decision::AnotherRound);
    assert_eq!(at(Mode::PreCopy, GIB / 10), small);
    assert_eq!(at(Mode::PreCopy, GIB / 10 + 1), Decision::AnotherRound);
}

#[test]
fn what_is_sent_while_tasks_are_parked_is_judged_by_the_last_round() {
    let at = |mode, dirty_bytes| decide(mode, &Measured { dirty_bytes, bandwidth: GIB / 4, ..measured() });
    let small = Decision::HandOver(Why::SmallEnough);
    assert_eq!(at(Mode::PreCopy, GIB / 40), small);
    assert_eq!(at(Mode::PreCopy, GIB / 40 + 1), Decision::AnotherRound);
    assert_eq!(at(Mode::Hybrid, GIB / 500), small);
    // Whether rounds shrink is not.
    let slow = Measured { dirty_rate: GIB / 2, bandwidth: GIB / 4, ..measured() };
    assert_eq!(decide(Mode::PreCopy, &slow), Decision::AnotherRound);
}

#[test]
fn nothing_goes_on_for_ever() {
    for mode in [Mode::PreCopy, Mode::Hybrid] {
        let many = Measured { rounds: MAX_ROUNDS, ..measured() };
        assert_eq!(decide(mode, &many), Decision::HandOver(Why::Rounds));
        let much = Measured { sent_bytes: 12 * GIB, ..measured() };
        assert_eq!(decide(mode, &much), Decision::HandOver(Why::Bytes));
        let silent = Measured { bandwidth: 0, carried: 0, ..measured() };
        assert_eq!(decide(mode, &silent), Decision::HandOver(Why::NotShrinking));
    }
}

#[test]
fn rounds_end_whatever_is_measured() {
    // A tenant that writes at half the bandwidth over all its memory: each round halves what is left.
    let mut now = Measured {
        rounds: 0,
        sent_bytes: 0,
        dirty_bytes: 4 * GIB,
        dirty_rate: GIB / 2,
        least: Least::NONE,
        ..measured()
    };
    while decide(Mode::Hybrid, &now) == Decision::AnotherRound {
        now = Measured {
            rounds: now.rounds + 1,
            sent_bytes: now.sent_bytes + now.dirty_bytes,
            dirty_bytes: now.dirty_bytes / 2,
            least: now.least.after(now.dirty_bytes / 2),
            ..now
        };
    }
    assert_eq!(decide(Mode::Hybrid, &now), Decision::HandOver(Why::SmallEnough));
    assert_eq!(now.rounds, 11);
}

#[test]
fn what_a_round_costs_besides_ends_them_early() {
    // The same, but 50 ms of each round nothing is sent: what is written in that time stays.
    let cost = |bytes: u64| bytes / 2 + GIB / 40;
    let mut now =
        Measured { rounds: 1, dirty_bytes: 2 * GIB, least: Least::NONE, dirty_rate: GIB / 2, ..measured() };
    while decide(Mode::Hybrid, &now) == Decision::AnotherRound {
        let left = cost(now.dirty_bytes);
        let least = now.least.after(left);
        now = Measured { rounds: now.rounds + 1, dirty_bytes: left, least, ..now };
    }
    assert_eq!(decide(Mode::Hybrid, &now), Decision::HandOver(Why::NotShrinking));
    // Any number of rounds would come to a twentieth.
    assert_eq!((now.rounds, now.dirty_bytes / (GIB / 200)), (12, 10));
}

#[test]
fn a_window_holds_a_millisecond_and_always_one_unit() {
    let mut window = Window::for_bandwidth(10_000_000);
    assert_eq!(window.room(), LARGE_BYTES as u64, "with nothing on the way anything may be asked for");
    window.sent(4096);
    assert_eq!(window.room(), 10_000 - 4096);
    window.sent(LARGE_BYTES as u64);
    assert_eq!(window.room(), 0);
    window.arrived(LARGE_BYTES as u64);
    window.adjust(20_000_000);
    assert_eq!(window.room(), 20_000 - 4096);
    window.clear();
    assert_eq!(window.room(), LARGE_BYTES as u64);
}

#[test]
fn a_small_remainder_is_not_left_outstanding() {
    let lists = |mode, bytes| lists_remainder(mode, bytes, 1_000_000_000);
    for (mode, few, many) in [
        (Mode::StopAndCopy, false, false),
        (Mode::PreCopy, false, false),
        (Mode::PostCopy, true, true),
        (Mode::Hybrid, false, true),
    ] {
        assert_eq!((lists(mode, 1_000_000), lists(mode, 1_000_001)), (few, many), "{mode:?}");
    }
    assert!(lists_remainder(Mode::Hybrid, 1, 0) && lists_remainder(Mode::Hybrid, u64::MAX, u64::MAX));
    assert!(!lists_remainder(Mode::Hybrid, 0, 0));
}
