//! Makes the ids of records.
//!
//! **What.** UUID version 7 for every id newtype that the controller makes.
//! **Why version 7.** Ids sort by age, so "newest first" pages by the primary key alone; and an id made here before the
//! transaction lets a repeated transaction write the same row instead of a second one.
//! **Invariants.** Two ids of one process are never equal and sort in the order in which they were made (the counter of
//! the uuid crate). The clock is read inside that crate; a clock that jumps back delays the order, not the uniqueness.

use hearth_protocol::id::{
    DomainId, GrantId, HostImageId, ImageId, IntentId, JobId, JoinTokenId, LinkId, LocationId, OperationId,
    PrewarmGroupId, PrewarmId, ProjectId, TokenId, UserId,
};

/// An id that the controller makes.
pub trait NewId {
    /// Wraps the 16 bytes of a fresh UUID.
    fn from_uuid(bytes: [u8; 16]) -> Self;
}

macro_rules! made_here {
    ($($name:ident)*) => {$(
        impl NewId for $name {
            fn from_uuid(bytes: [u8; 16]) -> Self {
                Self::from_bytes(bytes)
            }
        }
    )*};
}

made_here! {
    DomainId HostImageId ImageId IntentId JobId JoinTokenId LinkId LocationId OperationId PrewarmGroupId PrewarmId ProjectId
    TokenId GrantId UserId
}

/// A fresh id, larger than every id this process made before.
#[must_use]
pub fn new_id<T: NewId>() -> T {
    T::from_uuid(*uuid::Uuid::now_v7().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_in_the_order_in_which_they_were_made() {
        let ids: Vec<ImageId> = (0..1000).map(|_| new_id()).collect();
        assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
