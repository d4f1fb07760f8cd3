//! The guard of all calls: who calls, whether the method's rule allows it, and how long the answer may take. It decides
//! before a byte of the call's body is read.

use super::{
    limits::Limits,
    methods::{Access, Rule, rule_of},
    visitor::Visitor,
};
use crate::security::{Role, Tokens};
use ballast_proto::{ErrorCode, Failure};
use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response, header::AUTHORIZATION},
};
use tower::Service;

/// What the guard knows.
pub(super) struct Policy {
    /// Without tokens everyone has every role.
    pub(super) tokens: Option<Arc<Tokens>>,
    pub(super) limits: Limits,
}

impl Policy {
    /// The rule that allows a call.
    fn admit<B>(&self, request: &Request<B>) -> Result<Rule, Failure> {
        let path = request.uri().path();
        // Every connection has its visitor; one without would be a defect, and is not let in.
        let Some(visitor) = request.extensions().get::<Arc<Visitor>>() else {
            return Err(Failure::new(ErrorCode::Internal, "a call without a connection"));
        };
        let judged = self.judge(visitor, path, request.headers());
        match &judged {
            Ok(Rule { access: Access::Anyone, .. }) if self.tokens.is_some() => {}
            Ok(_) => visitor.admit(),
            Err(failure) => {
                if visitor.refuse(&self.limits) {
                    tracing::warn!(peer = %visitor.peer, path, code = %failure.code, "refused: {failure}");
                }
            }
        }
        judged
    }

    fn judge(&self, visitor: &Visitor, path: &str, headers: &HeaderMap) -> Result<Rule, Failure> {
        if visitor.surplus {
            let message = format!("the coordinator has {} connections, as many as it takes", self.limits.connections);
            return Err(Failure::new(ErrorCode::TooManyConnections, message));
        }
        let rule = rule_of(path).ok_or_else(|| {
            Failure::new(ErrorCode::Forbidden, "the coordinator has no such method: is this its version?")
        })?;
        let (Access::Only(roles), Some(tokens)) = (rule.access, &self.tokens) else { return Ok(rule) };
        let role = caller(tokens, headers)?;
        if roles.contains(&role) {
            return Ok(rule);
        }
        let needed: Vec<String> = roles.iter().map(ToString::to_string).collect();
        let message = format!("the token is of role {role}; this takes a token of role {}", needed.join(" or "));
        Err(Failure::new(ErrorCode::Forbidden, message))
    }
}

/// The role of the token in a call's headers.
fn caller(tokens: &Tokens, headers: &HeaderMap) -> Result<Role, Failure> {
    let unknown = |message| Failure::new(ErrorCode::Unauthenticated, message);
    let header = headers.get(AUTHORIZATION).ok_or_else(|| {
        unknown("the coordinator asks for a token: give one with --token-file, or in the environment variable BALLAST_TOKEN")
    })?;
    let presented = header.as_bytes().strip_prefix(b"Bearer ");
    let role = presented.and_then(|token| tokens.role_of(token));
    role.ok_or_else(|| unknown("the coordinator does not know this token: it is not in its security.token_file"))
}

/// A service behind the guard.
#[derive(Clone)]
pub(super) struct Guard<S> {
    pub(super) inner: S,
    pub(super) policy: Arc<Policy>,
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let rule = match self.policy.admit(&request) {
            Ok(rule) => rule,
            Err(failure) => return Box::pin(ready(Ok(Status::from(failure).into_http()))),
        };
        // The service that is ready is the one to call; its clone need not be.
        let next = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, next);
        Box::pin(in_time(rule, async move { service.call(request).await }))
    }
}

/// The answer, or a refusal when it takes longer than the rule allows.
async fn in_time<E>(rule: Rule, answer: impl Future<Output = Result<Response<Body>, E>>) -> Result<Response<Body>, E> {
    let Some(deadline) = rule.deadline else { return answer.await };
    timeout(deadline, answer).await.unwrap_or_else(|_| {
        let message = format!("{} took longer than {} s", rule.path, deadline.as_secs());
        Ok(Status::from(Failure::new(ErrorCode::DeadlineExceeded, message)).into_http())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, future::pending, time::Duration};

    #[tokio::test]
    async fn an_answer_that_never_comes_is_given_up() {
        let late = Rule { path: "/late", access: Access::Anyone, deadline: Some(Duration::ZERO) };
        let response = in_time(late, pending::<Result<_, Infallible>>()).await.unwrap();
        let failure = Failure::from(Status::from_header_map(response.headers()).unwrap());
        assert_eq!((failure.code, &*failure.message), (ErrorCode::DeadlineExceeded, "/late took longer than 0 s"));
        let answer = || ready(Ok::<_, Infallible>(Response::new(Body::empty())));
        for deadline in [None, Some(Duration::ZERO)] {
            let response = in_time(Rule { deadline, ..late }, answer()).await.unwrap();
            assert!(Status::from_header_map(response.headers()).is_none());
        }
    }
}
