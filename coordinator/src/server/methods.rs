//! Which role may call which method, and how long the answer may take. What does not stand here is refused; a test holds
//! the table against the services.

use super::limits::{ANSWER, DOWNLOAD, UPLOAD};
use crate::security::Role::{self, Observer, Operator, Worker};
use std::time::Duration;

/// What is decided about one method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// As a request names it.
    pub(super) path: &'static str,
    pub(super) access: Access,
    /// Longest time until the answer, or the first word of a stream.
    pub(super) deadline: Option<Duration>,
}

/// Who may call a method.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// Everyone, also without a token: whether the coordinator is alive is no secret.
    Anyone,
    /// The holders of a token of these roles.
    Only(&'static [Role]),
}

const fn rule(path: &'static str, roles: &'static [Role], deadline: Option<Duration>) -> Rule {
    Rule { path, access: Access::Only(roles), deadline }
}

const fn open(path: &'static str) -> Rule {
    Rule { path, access: Access::Anyone, deadline: Some(ANSWER) }
}

const TABLE: &[Rule] = &[
    rule("/ballast.v1.Membership/Join", &[Worker], Some(ANSWER)),
    rule("/ballast.v1.Membership/Session", &[Worker], Some(ANSWER)),
    rule("/ballast.v1.Data/StreamShards", &[Worker], Some(ANSWER)),
    rule("/ballast.v1.Checkpoint/Upload", &[Worker], Some(UPLOAD)),
    rule("/ballast.v1.Checkpoint/Download", &[Worker], Some(DOWNLOAD)),
    // Waits for as long as other workers hold tasks; their leases bound it.
    rule("/ballast.v1.Evaluation/NextTask", &[Worker], None),
    rule("/ballast.v1.Evaluation/ReportTask", &[Worker], Some(ANSWER)),
    rule("/ballast.v1.Admin/Status", &[Observer, Operator], Some(ANSWER)),
    rule("/ballast.v1.Admin/Stop", &[Operator], Some(ANSWER)),
    open("/grpc.health.v1.Health/Check"),
    open("/grpc.health.v1.Health/Watch"),
];

/// The rule of a method, if there is such a method.
pub(super) fn rule_of(path: &str) -> Option<Rule> {
    TABLE.iter().copied().find(|rule| rule.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::METHODS;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_every_service_has_a_rule() {
        let methods: BTreeSet<&str> = METHODS.iter().copied().collect();
        let ruled: BTreeSet<&str> = TABLE.iter().map(|rule| rule.path).filter(|p| p.starts_with("/ballast.")).collect();
        assert_eq!(ruled, methods, "a method without a rule, or a rule without its method");
        assert_eq!(ruled.len() + 2, TABLE.len(), "a path stands twice, or a stranger among them");
    }

    #[test]
    fn only_health_is_open() {
        let open = TABLE.iter().filter(|rule| matches!(rule.access, Access::Anyone));
        assert!(open.clone().count() == 2 && open.into_iter().all(|rule| rule.path.starts_with("/grpc.health.v1.")));
    }

    #[test]
    fn only_waiting_for_a_task_has_no_deadline() {
        let patient: Vec<_> = TABLE.iter().filter(|rule| rule.deadline.is_none()).map(|rule| rule.path).collect();
        assert_eq!(patient, ["/ballast.v1.Evaluation/NextTask"]);
    }
}
