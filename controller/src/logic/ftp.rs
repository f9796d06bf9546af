//! Reads what an FTP server says.
//!
//! **What.** [`Replying`] puts an answer of one or many lines together; [`extended_port`] and [`passive_port`] find the port of the
//! second connection in one.
//!
//! **Why no address.** What a server says of its address is not looked at: it could name somebody else's host.
//!
//! **Invariants.** An answer ends after [`LINES_MAX`] lines at the latest.

/// Lines of an answer: a greeting of a page is long.
pub const LINES_MAX: usize = 256;

/// Why an answer is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReplyError {
    /// Its first line has no number.
    #[error("that is no FTP server")]
    NoFtp,
    /// Too many lines.
    #[error("the server's answer has no end")]
    Endless,
}

/// An answer: its number, and the text of its last line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// 100 or more.
    pub code: u16,
    /// What follows it.
    pub text: String,
}

/// An answer of which lines come.
#[derive(Clone, Debug, Default)]
pub struct Replying {
    /// Number of the first line, if more follow.
    first: Option<u16>,
    lines: usize,
}

impl Replying {
    /// Takes the next line; the answer, if it is the last one.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub fn line(&mut self, line: &str) -> Result<Option<Reply>, ReplyError> {
        self.lines += 1;
        if self.lines > LINES_MAX {
            return Err(ReplyError::Endless);
        }
        let line = line.trim_end();
        let code = line.get(..3).and_then(|digits| digits.parse::<u16>().ok()).filter(|code| *code >= 100);
        let end = line.as_bytes().get(3).is_none_or(|byte| *byte == b' ');
        match (self.first, code) {
            (None, Some(code)) if !end => self.first = Some(code),
            (None, Some(code)) => return Ok(Some(reply(code, line))),
            (Some(begun), Some(code)) if begun == code && end => return Ok(Some(reply(code, line))),
            (Some(_), _) => {}
            (None, None) => return Err(ReplyError::NoFtp),
        }
        Ok(None)
    }
}

fn reply(code: u16, line: &str) -> Reply {
    Reply { code, text: line.get(3..).unwrap_or_default().to_owned() }
}

/// The port of `Entering Extended Passive Mode (|||6446|)`.
#[must_use]
pub fn extended_port(text: &str) -> Option<u16> {
    let inside = text.split_once('(')?.1.split_once(')')?.0;
    let mark = inside.chars().next()?;
    inside.split(mark).nth(3)?.parse().ok()
}

/// The port of `Entering Passive Mode (127,0,0,1,25,46)`; the address is not looked at.
#[must_use]
pub fn passive_port(text: &str) -> Option<u16> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let numbers: Vec<u8> = text
        .get(start..)?
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .take(6)
        .collect();
    match numbers[..] {
        [_, _, _, _, high, low] => Some(u16::from(high) << 8 | u16::from(low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_addresses_are_not() {
        assert_eq!(extended_port(" Entering Extended Passive Mode (|||6446|)."), Some(6446));
        assert_eq!(passive_port(" Entering Passive Mode (169,254,169,254,25,46)."), Some(25 << 8 | 46));
        for bad in ["", "(", "(|||)", "(|||99999|)"] {
            assert_eq!(extended_port(bad), None, "{bad}");
        }
        for bad in ["", "(1,2,3,4,5)", "(1,2,3,4,5,256)", "x"] {
            assert_eq!(passive_port(bad), None, "{bad}");
        }
    }
}
