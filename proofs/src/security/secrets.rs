//! The secrets of roles, and the role that only a proof has.

/// Who sets up streams and publishes into them, and may do anything.
pub(super) const SETUP: &str = "setup";

/// A role's secret; none of these may ever be in a log.
pub(super) fn password(role: &str) -> String {
    format!("secret-of-{role}")
}

/// What the broker's configuration calls it.
pub(super) fn variable(role: &str) -> String {
    format!("NATSWAY_{}_PASSWORD", role.to_uppercase().replace('-', "_"))
}

/// Permissions with one more user, who sets up streams, publishes into them, and may do anything.
pub(super) fn with_setup(permissions: &str) -> String {
    let setup = format!("    {{ user: {SETUP}, password: {} }}\n", password(SETUP));
    permissions.replace("  users: [\n", &format!("  users: [\n{setup}"))
}
