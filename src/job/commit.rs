//! The commit that a build is of.

use jiff::Timestamp;

use super::Sha;

/// A commit, as the labels of its images describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub sha: Sha,
    /// URL of its repository, without credentials.
    pub url: String,
    /// When it was committed; `None` when its author wrote a time that no image can carry.
    pub committed_at: Option<Timestamp>,
}

impl Commit {
    /// The time of a commit, from seconds since 1970. Anyone can write any number into a commit; images carry the years 1970 to
    /// 9999.
    pub fn time(seconds: i64) -> Option<Timestamp> {
        Timestamp::from_second(seconds).ok().filter(|time| *time >= Timestamp::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_image_can_carry_is_left_out() {
        let shown = |seconds| Commit::time(seconds).map(|time| time.to_string());
        assert_eq!(shown(1_767_323_045).as_deref(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(shown(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        for seconds in [-1, i64::MIN, i64::MAX, 253_402_300_800] {
            assert_eq!(shown(seconds), None, "{seconds}");
        }
    }
}
