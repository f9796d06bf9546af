//! Exit codes of the controller's program.
//!
//! **What.** 0 done; 1 a check found something; 2 failed; 78 the configuration is wrong, or none is set up.
//! **Why 78 apart.** What only a person can mend must not be started again: the unit names the code in
//! `RestartPreventExitStatus=`. It is that of sysexits.h.

use hearth_controller::config::ConfigError;
use hearth_controller::serve::ServeError;
use hearth_controller::state::StateError;

const CONFIGURATION: u8 = 78;
const FAILED: u8 = 2;

/// The code for an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    let of_configuration = error.is::<ConfigError>()
        || matches!(
            error.downcast_ref(),
            Some(ServeError::State(StateError::Empty { .. }) | ServeError::MasterKey(_))
        );
    if of_configuration { CONFIGURATION } else { FAILED }
}
