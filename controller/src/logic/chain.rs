//! Judges the chain of the operation log, row by row.
//!
//! **What.** [`Walk`] is shown every sealed row in the order of its number, with the hash that its columns really have, and
//! collects [`Finding`]s: which row is missing, changed, out of order or planted.
//!
//! **Why it goes on after the first one.** Whoever looks for what an intruder did wants every touched row, and not the whole
//! rest of the log because one row in it was touched. So a row is blamed for itself: one that is whole in itself and
//! only stands behind a bad one is not.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `an_untouched_chain_has_no_findings`
//! 2. `a_changed_row_is_blamed_alone`
//! 3. `missing_rows_are_named_from_to`
//! 4. `two_rows_that_changed_places_are_both_named`
//! 5. `a_row_that_was_replaced_and_hashed_anew_breaks_the_next_link`
//! 6. `rows_before_the_begin_or_after_the_head_are_planted`
//! 7. `the_list_is_bounded_and_the_count_is_not`

/// Findings that are kept; the rest is counted. Bounds the answer.
pub const FINDINGS_MAX: usize = 100;

/// Where the chain begins or ends: a row's number and hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mark {
    /// Number of the row; 0 before the first one.
    pub seq: u64,
    /// Its hash, hex.
    pub hash: String,
}

/// One sealed row.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// Its number.
    pub seq: u64,
    /// Its id.
    pub id: &'a str,
    /// The hash that it says the row before it has.
    pub prev_hash: &'a str,
    /// The hash that it says it has.
    pub hash: &'a str,
    /// The hash that its columns have after `prev_hash`.
    pub computed: &'a str,
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// Its columns are not those that were sealed.
    Changed,
    /// It does not follow the row before it.
    OutOfOrder,
    /// It has a number that was not given.
    Planted,
}

impl Flaw {
    /// The word that answers show.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::OutOfOrder => "out_of_order",
            Self::Planted => "planted",
        }
    }
}

/// A flaw and where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// Number of the row.
    pub seq: u64,
    /// Number of the last row of the gap; `seq` for all else.
    pub last_seq: u64,
    /// Id of the row, if there is one.
    pub id: Option<String>,
    /// What is wrong.
    pub flaw: Flaw,
}

/// A check that runs.
#[derive(Clone, Debug)]
pub struct Walk {
    next: u64,
    /// Hashes that the next row may name as that of the row before; `None` after a gap.
    before: Option<Vec<String>>,
    before_is_whole: bool,
    intact: u64,
    findings: Vec<Finding>,
    flaws: u64,
}

impl Walk {
    /// A check that begins after `begin`.
    #[must_use]
    pub fn new(begin: &Mark) -> Self {
        Self {
            next: begin.seq + 1,
            before: Some(vec![begin.hash.clone()]),
            before_is_whole: true,
            intact: 0,
            findings: Vec::new(),
            flaws: 0,
        }
    }

    /// Looks at the next row.
    pub fn see(&mut self, link: &Link<'_>) {
        self.reach(link.seq);
        let whole = link.computed == link.hash;
        let follows =
            self.before.as_ref().is_none_or(|before| before.iter().any(|hash| hash == link.prev_hash));
        let flaw = match (whole, follows) {
            (true, true) => None,
            (false, true) => Some(Flaw::Changed),
            (false, false) => Some(Flaw::OutOfOrder),
            // Two whole rows that do not fit, or one behind a bad row.
            (true, false) => self.before_is_whole.then_some(Flaw::OutOfOrder),
        };
        match flaw {
            Some(flaw) => self.found(link.seq, link.seq, Some(link.id), flaw),
            None => self.intact += 1,
        }
        // Either may be what the next row was sealed after: columns or the hash itself were changed.
        let mut before = vec![link.hash.to_owned()];
        if !whole {
            before.push(link.computed.to_owned());
        }
        self.before = Some(before);
        self.before_is_whole = whole;
        self.next = link.seq + 1;
    }

    /// Notes a row that cannot even be read; its number may be unknown too.
    pub fn see_unreadable(&mut self, seq: Option<u64>) {
        let seq = seq.unwrap_or(self.next).max(self.next);
        self.reach(seq);
        self.found(seq, seq, None, Flaw::Changed);
        (self.before, self.before_is_whole, self.next) = (None, false, seq + 1);
    }

    /// Notes a row with a number that was given before the begin of the chain.
    pub fn see_before_begin(&mut self, seq: u64, id: &str) {
        self.found(seq, seq, Some(id), Flaw::Planted);
    }

    /// Notes that nothing says who moved the begin of the chain to `begin`.
    pub fn begin_is_unproven(&mut self, begin: &Mark) {
        self.found(begin.seq, begin.seq, None, Flaw::Planted);
    }

    /// Compares the end with the head that was kept.
    #[must_use]
    pub fn end(mut self, head: &Mark) -> Verdict {
        let last = self.next - 1;
        if last < head.seq {
            self.reach(head.seq + 1);
        } else if last > head.seq {
            self.found(head.seq + 1, last, None, Flaw::Planted);
        } else if self.findings.is_empty()
            && self.before.as_ref().is_some_and(|before| before[0] != head.hash)
        {
            self.found(last, last, None, Flaw::Changed);
        }
        self.findings.sort_by_key(|finding| finding.seq);
        Verdict { intact: self.intact, findings: self.findings, flaws: self.flaws }
    }

    /// Notes the gap before `seq`, if there is one.
    fn reach(&mut self, seq: u64) {
        if seq > self.next {
            self.found(self.next, seq - 1, None, Flaw::Missing);
            (self.before, self.next) = (None, seq);
        }
    }

    fn found(&mut self, seq: u64, last_seq: u64, id: Option<&str>, flaw: Flaw) {
        self.flaws += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { seq, last_seq, id: id.map(str::to_owned), flaw });
        }
    }
}

/// What a [`Walk`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Rows without a flaw.
    pub intact: u64,
    /// The first [`FINDINGS_MAX`] flaws, by number.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub flaws: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row whose columns are one text; its hash is spelled out.
    #[derive(Clone, Debug)]
    struct Row {
        seq: u64,
        text: &'static str,
        prev_hash: String,
        hash: String,
    }

    fn hash(prev_hash: &str, seq: u64, text: &str) -> String {
        format!("({prev_hash} {seq} {text})")
    }

    fn chain(texts: &[&'static str]) -> Vec<Row> {
        let mut prev_hash = "begin".to_owned();
        let mut rows = Vec::new();
        for (seq, text) in (1..).zip(texts) {
            let hash = hash(&prev_hash, seq, text);
            rows.push(Row { seq, text, prev_hash: std::mem::replace(&mut prev_hash, hash.clone()), hash });
        }
        rows
    }

    fn verdict(rows: &[Row], head: &Mark) -> Verdict {
        let mut walk = Walk::new(&Mark { seq: 0, hash: "begin".to_owned() });
        for row in rows {
            let computed = hash(&row.prev_hash, row.seq, row.text);
            let (prev_hash, hash) = (&row.prev_hash, &row.hash);
            walk.see(&Link { seq: row.seq, id: row.text, prev_hash, hash, computed: &computed });
        }
        walk.end(head)
    }

    /// Applies `change` to five rows; the findings as (from, to, flaw).
    #[track_caller]
    fn check(change: impl FnOnce(&mut Vec<Row>), expected: &[(u64, u64, Flaw)]) {
        let mut rows = chain(&["a", "b", "c", "d", "e"]);
        let head = Mark { seq: 5, hash: rows[4].hash.clone() };
        change(&mut rows);
        let found = verdict(&rows, &head);
        let found: Vec<_> = found.findings.iter().map(|f| (f.seq, f.last_seq, f.flaw)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_untouched_chain_has_no_findings() {
        check(|_| (), &[]);
    }

    #[test]
    fn a_changed_row_is_blamed_alone() {
        check(|rows| rows[2].text = "x", &[(3, 3, Flaw::Changed)]);
        check(|rows| rows[2].hash = "x".into(), &[(3, 3, Flaw::Changed)]);
        check(|rows| rows[2].prev_hash = "x".into(), &[(3, 3, Flaw::OutOfOrder)]);
        check(|rows| rows[4].text = "x", &[(5, 5, Flaw::Changed)]);
    }

    #[test]
    fn missing_rows_are_named_from_to() {
        check(|rows| drop(rows.remove(0)), &[(1, 1, Flaw::Missing)]);
        check(|rows| drop(rows.drain(1..3)), &[(2, 3, Flaw::Missing)]);
        check(|rows| rows.truncate(3), &[(4, 5, Flaw::Missing)]);
        check(Vec::clear, &[(1, 5, Flaw::Missing)]);
    }

    #[test]
    fn two_rows_that_changed_places_are_both_named() {
        let swap = |rows: &mut Vec<Row>| {
            rows.swap(1, 3);
            (rows[1].seq, rows[3].seq) = (2, 4);
        };
        check(swap, &[(2, 2, Flaw::OutOfOrder), (4, 4, Flaw::OutOfOrder)]);
    }

    #[test]
    fn a_row_that_was_replaced_and_hashed_anew_breaks_the_next_link() {
        let replace = |rows: &mut Vec<Row>| {
            rows[2].text = "x";
            rows[2].hash = hash(&rows[2].prev_hash, 3, "x");
        };
        check(replace, &[(4, 4, Flaw::OutOfOrder)]);
        let replace_last = |rows: &mut Vec<Row>| {
            rows[4].text = "x";
            rows[4].hash = hash(&rows[4].prev_hash, 5, "x");
        };
        check(replace_last, &[(5, 5, Flaw::Changed)]);
    }

    #[test]
    fn rows_before_the_begin_or_after_the_head_are_planted() {
        let append = |rows: &mut Vec<Row>| {
            let prev_hash = rows[4].hash.clone();
            let hash = hash(&prev_hash, 6, "x");
            rows.push(Row { seq: 6, text: "x", prev_hash, hash });
        };
        check(append, &[(6, 6, Flaw::Planted)]);
        let begin = Mark { seq: 3, hash: "h".to_owned() };
        let mut walk = Walk::new(&begin);
        walk.see_before_begin(2, "x");
        let found = walk.end(&begin);
        assert_eq!((found.flaws, found.findings[0].flaw), (1, Flaw::Planted));
    }

    #[test]
    fn the_list_is_bounded_and_the_count_is_not() {
        let mut walk = Walk::new(&Mark { seq: 0, hash: "begin".to_owned() });
        (0..250).for_each(|_| walk.see_unreadable(None));
        let found = walk.end(&Mark { seq: 250, hash: "x".to_owned() });
        assert_eq!((found.flaws, found.findings.len()), (250, FINDINGS_MAX));
    }
}
