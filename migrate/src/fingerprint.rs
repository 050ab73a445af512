//! The fingerprint of a table of units: what the final manifest says about *every* unit without listing them.
//!
//! A table maps a place's key `x` (below 2^37) to a weight `w` (below 2^40) made of generation, extent and content. Its
//! fingerprint is the polynomial with these coefficients at a secret point: the sum of `w(x) * r^(x + 1)` modulo the prime
//! 2^127 - 1 (Carter and Wegman, "New hash functions and their use in authentication and set equality", 1981). Two tables that
//! differ differ by a polynomial of degree 2^37 at most, which is not zero and so has as many roots at most: over the choice of `r` they
//! have the same fingerprint with a probability below 2^-89. `r` comes from the transcript's secret, fingerprints
//! travel encrypted, and what was compared once is not tried again: nobody outside the two guests can choose what is lost on the way so that it cancels out.
//!
//! One unit that changes costs one power, about 0.1 us, whatever the table's size, and fingerprints of parts add up.

use core::hash::{Hash, Hasher};

const PRIME: u128 = (1 << 127) - 1;
/// Bits of an exponent: a key of 37 bits, plus one.
const BITS: usize = 38;

/// The secret point, with what is needed to raise it to a power.
#[derive(Clone)]
pub(crate) struct Point {
    /// `r^(2^i)`.
    squares: [u128; BITS],
}

impl PartialEq for Point {
    fn eq(&self, other: &Point) -> bool {
        self.squares[0] == other.squares[0]
    }
}

impl Eq for Point {}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.squares[0].hash(state);
    }
}

impl Point {
    pub(crate) fn new(secret: &[u8; 32]) -> Point {
        let (half, _) = secret.split_first_chunk().expect("32 bytes hold 16");
        let mut squares = [u128::from_le_bytes(*half) % PRIME; BITS];
        for i in 1..BITS {
            squares[i] = mul(squares[i - 1], squares[i - 1]);
        }
        Point { squares }
    }

    /// What a table loses and gains by a unit whose weight changes.
    pub(crate) fn terms(&self, key: u64, before: u64, after: u64) -> (u128, u128) {
        let power = self.power(key);
        (mul(power, u128::from(before)), mul(power, u128::from(after)))
    }

    /// What a table gains by `count` units of one weight with consecutive keys.
    pub(crate) fn run(&self, key: u64, count: u64, weight: u64) -> u128 {
        let mut power = self.power(key);
        let mut sum = 0;
        for _ in 0..count {
            sum = add(sum, power);
            power = mul(power, self.squares[0]);
        }
        mul(sum, u128::from(weight))
    }

    fn power(&self, key: u64) -> u128 {
        let exponent = key + 1;
        let bits = (0..BITS).filter(|bit| exponent >> bit & 1 == 1);
        bits.fold(1, |power, bit| mul(power, self.squares[bit]))
    }
}

pub(crate) fn add(a: u128, b: u128) -> u128 {
    reduce(a + b)
}

pub(crate) fn sub(a: u128, b: u128) -> u128 {
    reduce(a + PRIME - b)
}

/// For anything below 2^128: folds the top bit, then subtracts the prime if that is still needed.
fn reduce(value: u128) -> u128 {
    let folded = (value & PRIME) + (value >> 127);
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// Schoolbook on halves of 64 bits. Both factors are below 2^127, so no sum below overflows; 2^128 is 2 modulo the prime.
fn mul(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    let middle = a0 * b1 + a1 * b0 + (low >> 64);
    let high = a1 * b1 + (middle >> 64);
    let low = middle << 64 | (low & LOW);
    reduce((low & PRIME) + (low >> 127) + 2 * high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by doubling: slow and obvious.
    fn slow_mul(a: u128, b: u128) -> u128 {
        (0..127).rev().fold(0, |sum, bit| {
            let sum = reduce(sum << 1);
            if b >> bit & 1 == 1 { add(sum, a) } else { sum }
        })
    }

    #[test]
    fn arithmetic_is_that_of_the_field() {
        let edges =
            [0, 1, 2, 3, u64::MAX as u128, 1 << 64, PRIME - 1, PRIME - 2, 1 << 126, 0x1234_5678 << 90];
        for a in edges {
            for b in edges {
                assert_eq!(mul(a, b), slow_mul(a, b), "{a} * {b}");
                assert_eq!(sub(add(a, b), b), a, "{a} + {b} - {b}");
                assert!(mul(a, b) < PRIME && add(a, b) < PRIME);
            }
        }
    }

    #[test]
    fn powers_and_runs_are_what_they_say() {
        let point = Point::new(&[0xc5; 32]);
        let r = point.squares[0];
        let fourth = [r, r, r].into_iter().fold(r, slow_mul);
        assert_eq!(point.terms(3, 0, 7), (0, slow_mul(fourth, 7)));
        let far = (1 << 36) + 17;
        let sum = (0..512).fold(0, |sum, i| add(sum, point.terms(far + i, 9, 1).0));
        assert_eq!(point.run(far, 512, 9), sum);
    }
}
