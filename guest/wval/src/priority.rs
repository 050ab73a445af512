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

const _: () =
    assert!(CLASSES as u64 == nacre_abi::layout::PRIORITY_CLASSES, "the layout sets aside run queues");

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

    pub(crate) const fn bit(self) -> u64 {
        1 << self as usize
    }

    /// The classes in the order of a fairness turn: `lead` first, then the others, the higher first.
    pub(crate) fn led_by(lead: Priority) -> impl Iterator<Item = Priority> {
        core::iter::once(lead).chain(Self::ALL.into_iter().filter(move |class| *class != lead))
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
        let order: std::vec::Vec<_> = Priority::led_by(Priority::Low).collect();
        assert_eq!(order, [Priority::Low, Priority::High, Priority::Normal]);
    }
}
