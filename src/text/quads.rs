//! Tells of most texts that they have none of many words, in a few instructions a byte.
//!
//! Each word is represented by four of its bytes. A text without any of these has none of the words; a text with one of them may have
//! one, and must be searched. So this decides only how fast a search is, never what it finds.

/// The bytes of a word that are looked for.
pub const QUAD: usize = 4;

/// Quads that are looked up at once.
const BLOCK: usize = 8;

/// Bits in all, in the fastest cache of a processor. Few other texts meet one of the two bits of a hundred words. With very many words,
/// most texts are searched.
const N_BITS: usize = 1 << 17;

/// Of a long word, only the first bytes are considered.
const CONSIDERED: usize = 64;

/// The commonest letters of English text, the commonest first.
const COMMON: &[u8] = b" etaoinshrdlcumfwgypbvkxjqz";

/// Four bytes of each word.
#[derive(Debug)]
pub struct Quads {
    /// Two bits for each quad.
    bits: Box<[u64; N_BITS / 64]>,
    /// The bits of a byte that make no difference.
    ignored: u32,
}

impl Quads {
    /// Of words with four bytes or more.
    pub fn of<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Self {
        Self::new(words, 0)
    }

    /// The same, without regard to the case of ASCII letters.
    pub fn ignoring_case<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Self {
        Self::new(words, u32::from_ne_bytes([b'a' ^ b'A'; QUAD]))
    }

    fn new<'w>(words: impl IntoIterator<Item = &'w [u8]>, ignored: u32) -> Self {
        let mut all = Self { bits: Box::new([0; N_BITS / 64]), ignored };
        for word in words {
            let (one, other) = all.places(quad(&word[rarest(word)..]));
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

    /// The first place, not before `from`, where the text may have the quad of a word.
    pub fn candidate(&self, text: &[u8], from: usize) -> Option<usize> {
        let is_candidate = |window: &[u8]| {
            let (one, other) = self.places(quad(window));
            self.has(one) && self.has(other)
        };
        let mut at = from;
        // Most blocks have no candidate. One branch for a block is a fraction of the time of one for each byte.
        while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk) {
            if self.is_met_in(block)
                && let Some(n) = block.windows(QUAD).position(is_candidate)
            {
                return Some(at + n);
            }
            at += BLOCK;
        }
        text.get(at..)?.windows(QUAD).position(is_candidate).map(|n| at + n)
    }

    fn is_met_in(&self, block: &[u8; BLOCK + QUAD - 1]) -> bool {
        (0..BLOCK).fold(false, |is_met, n| is_met | self.has(self.places(quad(&block[n..n + QUAD])).0))
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
    u32::from_ne_bytes([window[0], window[1], window[2], window[3]])
}

/// Where the quad of a word begins: the four bytes that other texts are least likely to have.
pub fn rarest(word: &[u8]) -> usize {
    let rarity = |(_, window): &(usize, &[u8])| window.iter().map(|byte| rank(*byte)).sum::<usize>();
    let windows = word[..word.len().min(CONSIDERED)].windows(QUAD).enumerate();
    windows.max_by_key(rarity).expect("a word has four bytes").0
}

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
            words in prop::collection::vec("[a-c ]{4,8}", 1..5),
            before in "[a-c ]{0,20}",
            after in "[a-c ]{0,20}",
        ) {
            let (exact, folded) = (quads(&words, false), quads(&words, true));
            for word in &words {
                let text = format!("{before}{word}{after}");
                prop_assert!(exact.may_be_in(text.as_bytes()) && folded.may_be_in(text.as_bytes()));
                prop_assert!(folded.may_be_in(text.to_ascii_uppercase().as_bytes()));
                let at = before.len() + rarest(word.as_bytes());
                prop_assert!((0..=at).all(|from| exact.candidate(text.as_bytes(), from).is_some_and(|found| found <= at)));
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
