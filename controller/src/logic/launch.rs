//! What a tenant is told of a copy that does not come.
//!
//! **What.** [`told`] turns the fault of a location into a sentence that is the same whoever else uses it.
//!
//! **Why not the location's own text.** It is written for operators: it names what holds the disk, so contents, sizes and machines of
//! others. Who creates a machine there needs to know whether waiting helps.
//!
//! **Invariants**, with a test of the same name: `a_tenant_is_told_nothing_of_others`.

use hearth_protocol::fault::FaultCode;

/// What somebody who may not see copies is told of a fault; empty without one.
#[must_use]
pub const fn told(fault: Option<FaultCode>) -> &'static str {
    match fault {
        None => "",
        Some(FaultCode::NoSpace) => "no room at this location",
        Some(FaultCode::Disk) => "the disk of this location fails",
        Some(FaultCode::Stopped) => "transfers are stopped",
        Some(_) => "it could not be fetched; it is tried again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_told_nothing_of_others() {
        assert_eq!(told(None), "");
        assert_eq!(told(Some(FaultCode::NoSpace)), "no room at this location");
        for fault in FaultCode::ALL.iter().copied().chain([FaultCode::Unknown(999)]) {
            assert!(!told(Some(fault)).is_empty(), "{fault}");
        }
    }
}
