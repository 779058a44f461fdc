//! To which node a token belongs: the API server says so (TokenReview), the operator looks at who, for whom and where.

use std::collections::BTreeMap;
use std::time::Duration;

use intermezzo_control::{Review, Reviewer};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube_client::api::PostParams;
use kube_client::{Api, Client};
use tokio::time::timeout;

use crate::names::{AUDIENCE, NODE_ACCOUNT};

/// The node that a bound token was made for (Kubernetes 1.32 and newer).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the API server.
#[derive(Clone)]
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    user: String,
}

impl TokenReviews {
    /// Tokens must be of the node parts' ServiceAccount in this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> TokenReviews {
        let user = format!("system:serviceaccount:{namespace}:{NODE_ACCOUNT}");
        TokenReviews { reviews: Api::all(client), user }
    }
}

#[tonic::async_trait]
impl Reviewer for TokenReviews {
    async fn review(&self, token: &str) -> Review {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        match timeout(DEADLINE, self.reviews.create(&PostParams::default(), &review)).await {
            Ok(Ok(answer)) => judge(answer.status.unwrap_or_default(), &self.user),
            Ok(Err(error)) => Review::Unavailable(format!("the token could not be reviewed: {error}")),
            Err(_) => Review::Unavailable("the API server did not review the token in time".to_owned()),
        }
    }
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews").field("user", &self.user).finish_non_exhaustive()
    }
}

fn judge(status: TokenReviewStatus, wanted: &str) -> Review {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not valid".to_owned());
        return Review::Refused(format!("the token is refused: {why}"));
    }
    // An API server that does not know audiences leaves them out: then nobody has checked them.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Review::Refused(format!("the token is not for the audience {AUDIENCE}"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != wanted {
        return Review::Refused(format!("the token belongs to {name}, not to {wanted}"));
    }
    let extra: BTreeMap<String, Vec<String>> = user.extra.unwrap_or_default();
    match extra.get(NODE_CLAIM).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Review::Node(node.clone()),
        _ => Review::Refused(
            "the token does not say on which node its pod runs; Kubernetes 1.32 or newer is needed"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    const USER: &str = "system:serviceaccount:sys:intermezzo-node";

    fn good() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.into()]),
            user: Some(UserInfo {
                username: Some(USER.into()),
                extra: Some([(NODE_CLAIM.to_owned(), vec!["node-1".to_owned()])].into()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    fn refused(change: impl FnOnce(&mut TokenReviewStatus)) -> String {
        let mut status = good();
        change(&mut status);
        let Review::Refused(why) = judge(status, USER) else { panic!("it is taken") };
        why
    }

    #[test]
    fn only_a_token_of_an_agent_for_this_operator_names_a_node() {
        assert_eq!(judge(good(), USER), Review::Node("node-1".into()));
        assert!(refused(|s| s.authenticated = None).contains("not valid"));
        assert!(refused(|s| s.audiences = None).contains("audience"));
        assert!(refused(|s| s.audiences = Some(vec!["https://kubernetes".into()])).contains("audience"));
        let other = Some("system:serviceaccount:other:intermezzo-node".to_owned());
        assert!(refused(|s| s.user.as_mut().unwrap().username = other).contains("belongs to"));
        assert!(refused(|s| s.user.as_mut().unwrap().extra = None).contains("1.32"));
    }
}
