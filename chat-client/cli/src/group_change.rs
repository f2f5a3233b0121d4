//! Changes of groups in words.

use chat_client::{GroupAction, GroupProfile, User};

use crate::event_json::role_name;

/// Returns a change of a group in words, after the name of the user that made it.
pub(crate) fn change_text(action: &GroupAction, users: &[User], profile: Option<&GroupProfile>) -> String {
    let names = users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let name = profile.map_or("", |profile| &profile.name);
    match action {
        GroupAction::Create { .. } if users.is_empty() => format!("founded the group {name}"),
        GroupAction::Create { .. } => format!("founded the group {name} with {names}"),
        GroupAction::Add(_) => format!("added {names}"),
        GroupAction::Invite(_) => format!("invited {names}"),
        GroupAction::Remove { ban: false, .. } => format!("removed {names}"),
        GroupAction::Remove { ban: true, .. } => format!("removed and banned {names}"),
        GroupAction::Unban(_) => format!("ended the ban of {names}"),
        GroupAction::Join(_) => "joined, or asked to join".to_owned(),
        GroupAction::Leave => "left the group".to_owned(),
        GroupAction::SetRole(_, role) => format!("gave {names} the role {}", role_name(*role)),
        GroupAction::SetPolicy(_) => "changed the policy of the group".to_owned(),
        GroupAction::SetLink(Some(_)) => "made a new link to the group".to_owned(),
        GroupAction::SetLink(None) => "removed the link to the group".to_owned(),
        GroupAction::Edit => format!("set the profile of the group {name}"),
        _ => "changed the group".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat_client::GroupPolicy;

    #[test]
    fn changes_name_the_group_if_they_set_its_name() {
        let profile = GroupProfile::new("Hiking");
        let text = |action| change_text(&action, &[], Some(&profile));
        assert_eq!(text(GroupAction::Edit), "set the profile of the group Hiking");
        let create = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
        assert_eq!(text(create), "founded the group Hiking");
        assert_eq!(change_text(&GroupAction::Leave, &[], None), "left the group");
    }
}
