//! [`Priority`]: the class of a task, and in which order a vCPU looks through the classes.

/// How urgent a task is. A waiting task of a higher class is taken before one of a lower class, on every vCPU, and a
/// running one of a lower class gives way to it at its next safe point when no worker is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Before all others: short work that somebody waits for.
    High = 0,
    /// What has no class of its own.
    #[default]
    Normal = 1,
    /// Work that may wait while there is other.
    Low = 2,
}

/// How many classes there are.
pub const CLASSES: usize = Priority::ALL.len();

/// Run queues of one vCPU: for each class one of tasks that have begun and one of new tasks.
pub const LANES: usize = 2 * CLASSES;

const _: () =
    assert!(LANES as u64 == nacre_abi::layout::RUN_QUEUES_PER_VCPU, "the layout sets aside run queues");

/// Which of a vCPU's run queues a task is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane {
    pub class: Priority,
    /// It has not begun: it has no stack yet.
    pub new: bool,
}

impl Lane {
    pub const fn index(self) -> usize {
        2 * self.class as usize + self.new as usize
    }

    pub const fn bit(self) -> u64 {
        1 << self.index()
    }

    /// The bits of a class's two lanes.
    pub const fn both(class: Priority) -> u64 {
        Lane { class, new: false }.bit() | Lane { class, new: true }.bit()
    }

    /// All lanes in the order in which tasks are taken, by class; `new` says when new tasks are.
    pub fn order(lead: Priority, new: New) -> impl Iterator<Item = Lane> {
        (0..LANES).map(move |step| {
            let (place, new) = match new {
                New::First => (step / 2, step % 2 == 0),
                New::Second => (step / 2, step % 2 == 1),
                New::Last => (step % CLASSES, step >= CLASSES),
            };
            Lane { class: Priority::led_by(lead)[place], new }
        })
    }
}

/// When new tasks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum New {
    /// Before the others of their class.
    First,
    /// After the others of their class.
    Second,
    /// After all others of all classes.
    Last,
}

impl Priority {
    /// All classes, the highest first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// Its number, 0 for the highest.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The class with this number.
    pub const fn from_index(index: usize) -> Option<Priority> {
        match index {
            0 => Some(Priority::High),
            1 => Some(Priority::Normal),
            2 => Some(Priority::Low),
            _ => None,
        }
    }

    /// Whether a task of this class goes before one of `other`.
    pub const fn outranks(self, other: Priority) -> bool {
        (self as usize) < (other as usize)
    }

    /// The classes in the order of a fairness turn: `lead` first, then the others, the higher first.
    const fn led_by(lead: Priority) -> [Priority; CLASSES] {
        match lead {
            Priority::High => Self::ALL,
            Priority::Normal => [Priority::Normal, Priority::High, Priority::Low],
            Priority::Low => [Priority::Low, Priority::High, Priority::Normal],
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn classes_are_numbered_from_the_highest() {
        for (index, class) in Priority::ALL.into_iter().enumerate() {
            assert_eq!((class.index(), Priority::from_index(index)), (index, Some(class)));
        }
        assert_eq!(Priority::from_index(CLASSES), None);
        assert!(Priority::High.outranks(Priority::Normal) && Priority::Normal.outranks(Priority::Low));
        assert!(!Priority::Low.outranks(Priority::Low));
        for lead in Priority::ALL {
            assert_eq!(Priority::led_by(lead)[0], lead);
        }
    }

    #[test]
    fn new_tasks_come_with_their_class_or_last() {
        let order = |lead, new| {
            let lanes = Lane::order(lead, new).map(|lane| (lane.class.index(), lane.new));
            lanes.collect::<std::vec::Vec<_>>()
        };
        let (f, t) = (false, true);
        assert_eq!(order(Priority::High, New::Second), [(0, f), (0, t), (1, f), (1, t), (2, f), (2, t)]);
        assert_eq!(order(Priority::High, New::First), [(0, t), (0, f), (1, t), (1, f), (2, t), (2, f)]);
        assert_eq!(order(Priority::High, New::Last), [(0, f), (1, f), (2, f), (0, t), (1, t), (2, t)]);
        assert_eq!(order(Priority::Low, New::Second), [(2, f), (2, t), (0, f), (0, t), (1, f), (1, t)]);
    }
}
