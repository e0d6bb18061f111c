//! Tells of most texts that they have none of many words, in a few instructions a byte.
//!
//! Each word is represented by two quads: four of its bytes, and the four that begin one byte later. Wherever the word is, one of the
//! two begins at an even place, so only these places of a text are looked at. A text without any of the quads there has none of the
//! words; a text with one of them may have one, and must be searched. So this decides only how fast a search is, never what it finds.

use std::sync::LazyLock;

/// The bytes of a word that are looked for.
pub const QUAD: usize = 4;

/// How far apart the places are that are looked at: as many as a word has quads.
const STRIDE: usize = 2;

/// Quads that are looked up at once.
const BLOCK: usize = 8;

/// Bits in all, in the fastest cache of a processor. Few other quads meet one of the two bits of a hundred words.
const N_BITS: usize = 1 << 17;

/// Of a long word, only the first bytes are considered.
const CONSIDERED: usize = 64;

/// The commonest letters of English text, the commonest first.
const COMMON: &[u8] = b" etaoinshrdlcumfwgypbvkxjqz";

/// Words that builds print most.
const PRINTED: &[u8] =
    b" building compiling copying downloading example fetching file installing linking maven make module package request scope test with ";

/// More than the ranks of five bytes: any other quad is rarer than one of such a word.
const PRINTED_RANK: usize = 1000;

/// Two quads of each word.
#[derive(Debug)]
pub struct Quads {
    /// Two bits for each quad.
    bits: Box<[u64; N_BITS / 64]>,
    /// In order.
    quads: Box<[u32]>,
    /// The bits of a byte that make no difference.
    ignored: u32,
}

impl Quads {
    /// Of words with three bytes or more. One of three bytes counts only where another byte follows it.
    pub fn of<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Self {
        Self::new(words, 0)
    }

    /// The same, without regard to the case of ASCII letters.
    pub fn ignoring_case<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Self {
        Self::new(words, u32::from_ne_bytes([b'a' ^ b'A'; QUAD]))
    }

    fn new<'w>(words: impl IntoIterator<Item = &'w [u8]>, ignored: u32) -> Self {
        let mut quads: Vec<u32> =
            words.into_iter().flat_map(of_word).map(|(quad, _)| u32::from_ne_bytes(quad) | ignored).collect();
        quads.sort_unstable();
        quads.dedup();
        let mut all = Self { bits: Box::new([0; N_BITS / 64]), quads: quads.into(), ignored };
        for n in 0..all.quads.len() {
            let (one, other) = all.places(all.quads[n]);
            for place in [one, other] {
                all.bits[place / 64] |= 1 << (place % 64);
            }
        }
        all
    }

    /// Whether the text may have one of the words. `false` is certain.
    pub fn may_be_in(&self, text: &[u8]) -> bool {
        self.candidate(text, 0).is_some()
    }

    /// A place, not before `from`, where the text may have a quad of a word. All words that end before it, and begin at `from` or later,
    /// are not there.
    pub fn candidate(&self, text: &[u8], from: usize) -> Option<usize> {
        let is_candidate = |window: &[u8]| {
            let quad = quad(window);
            let (one, other) = self.places(quad);
            self.has(one) && self.has(other) && self.quads.binary_search(&(quad | self.ignored)).is_ok()
        };
        let first = |text: &[u8]| text.windows(QUAD).step_by(STRIDE).position(is_candidate).map(|n| n * STRIDE);
        let mut at = from;
        // Most blocks have no candidate. One branch for a block is a fraction of the time of one for each place.
        while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk) {
            if self.is_met_in(block)
                && let Some(n) = first(block)
            {
                return Some(at + n);
            }
            at += BLOCK * STRIDE;
        }
        first(text.get(at..)?).map(|n| at + n)
    }

    fn is_met_in(&self, block: &[u8; BLOCK * STRIDE + QUAD - STRIDE]) -> bool {
        (0..BLOCK)
            .map(|n| n * STRIDE)
            .fold(false, |is_met, n| is_met | self.has(self.places(quad(&block[n..n + QUAD])).0))
    }

    #[inline]
    fn has(&self, place: usize) -> bool {
        self.bits[place / 64] >> (place % 64) & 1 != 0
    }

    /// The places of its two bits, from the ends of a product that mixes all bytes (Fibonacci hashing).
    #[inline]
    fn places(&self, quad: u32) -> (usize, usize) {
        let mixed = u64::from(quad | self.ignored).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = |product: u64| (product >> (u64::BITS - N_BITS.ilog2())) as usize;
        (place(mixed), place(mixed.rotate_left(32)))
    }
}

#[inline]
fn quad(window: &[u8]) -> u32 {
    u32::from_ne_bytes(array(window))
}

/// The first bytes of a text in lower case.
pub fn lower(text: &[u8]) -> [u8; QUAD] {
    array(text).map(|byte| byte.to_ascii_lowercase())
}

#[inline]
fn array(window: &[u8]) -> [u8; QUAD] {
    [window[0], window[1], window[2], window[3]]
}

/// The quads of a word, each with where it begins, counted from the byte before the word: in the five bytes that other texts are least
/// likely to have. A word of three or four bytes has some hundred, with any byte before or after it.
pub fn of_word(word: &[u8]) -> Vec<([u8; QUAD], usize)> {
    let rarity = |(_, five): &(usize, &[u8])| {
        let n_printed = five.windows(QUAD).filter(|quad| PRINTED_QUADS.binary_search(&lower(quad)).is_ok()).count();
        five.iter().map(|byte| rank(*byte)).sum::<usize>() + PRINTED_RANK * (2 - n_printed)
    };
    let five = word[..word.len().min(CONSIDERED)].windows(QUAD + 1).enumerate().max_by_key(rarity);
    if let Some((at, five)) = five {
        return vec![(array(five), at + 1), (array(&five[1..]), at + 2)];
    }
    let any_before = |[a, b, c]: [u8; 3]| (0..=u8::MAX).map(move |byte| ([byte, a, b, c], 0));
    let any_after = |[a, b, c]: [u8; 3]| (0..=u8::MAX).map(move |byte| ([a, b, c, byte], 1));
    match *word {
        [a, b, c] => any_before([a, b, c]).chain(any_after([a, b, c])).collect(),
        [a, b, c, d] => any_before([a, b, c]).chain([([a, b, c, d], 1)]).collect(),
        _ => panic!("a word has three bytes"),
    }
}

/// The quads of [`PRINTED`], in order.
static PRINTED_QUADS: LazyLock<Vec<[u8; QUAD]>> = LazyLock::new(|| {
    let mut quads: Vec<_> = PRINTED.windows(QUAD).map(array).collect();
    quads.sort_unstable();
    quads
});

/// The rank of a byte: a common one has a low rank.
fn rank(byte: u8) -> usize {
    match byte {
        b'-' | b'=' | b'.' | b'/' | b'_' | b'*' | b'#' => 4,
        _ => COMMON.iter().position(|common| *common == byte.to_ascii_lowercase()).unwrap_or(COMMON.len() / 2),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_with_a_word_is_never_passed_over(
            words in prop::collection::vec("[a-c ]{3,8}", 1..5),
            before in "[a-c ]{0,20}",
            after in "[a-c ]{0,20}",
        ) {
            let (exact, folded) = (quads(&words, false), quads(&words, true));
            for word in &words {
                let needed = if word.len() == 3 { "." } else { "" };
                let text = format!("{before}{word}{needed}{after}");
                prop_assert!(exact.may_be_in(text.as_bytes()) && folded.may_be_in(text.as_bytes()));
                prop_assert!(folded.may_be_in(text.to_ascii_uppercase().as_bytes()));
                let (begin, end) = (before.len(), before.len() + word.len());
                prop_assert!((0..=begin).all(|from| exact.candidate(text.as_bytes(), from).is_some_and(|found| found < end)));
                // Some quad of the word is met, whatever the place to begin at.
                let quads = of_word(word.as_bytes());
                for from in 0..=begin {
                    let is_met = |at: usize| {
                        let quad = text.as_bytes().get(at..at + QUAD);
                        quads.iter().any(|(own, place)| begin + place == at + 1 && quad == Some(own))
                    };
                    prop_assert!((from..end).step_by(STRIDE).any(is_met), "{text} {word} {from}");
                }
            }
        }
    }

    fn quads(words: &[String], ignores_case: bool) -> Quads {
        let words = words.iter().map(String::as_bytes);
        if ignores_case { Quads::ignoring_case(words) } else { Quads::of(words) }
    }

    #[test]
    fn most_texts_have_none_of_many_words() {
        let words: Vec<String> =
            (0..500_u64).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let quads = quads(&words, false);
        let texts = (0..1000).map(|n| format!("CC src/module_{n}/file_{}.o with -O2 -Wall and -std=c17", n * 7));
        let n_met = texts.filter(|text| quads.may_be_in(text.as_bytes())).count();
        assert!(n_met < 100, "{n_met}");
    }
}
