//! Chooses pgBackRest's name for the cluster where the operator names none: `main`, unless another
//! cluster has that one in the repository.

/// The stanza of the first cluster of a repository.
pub const DEFAULT: &str = "main";

/// Whose a stanza is, as its `archive.info` or `backup.info` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// There is no such stanza.
    Nobody,
    /// This cluster's, or nobody can tell: the file is encrypted or damaged.
    This,
    /// Another cluster's.
    Another,
}

impl Holder {
    /// Whose the stanza of this info file is, for the cluster with this system identifier. After
    /// `stanza-upgrade` it is the newest cluster's.
    pub fn of(info: &str, system_id: u64) -> Holder {
        let database = info.lines().map(str::trim).skip_while(|line| *line != "[db]").skip(1);
        let mut database = database.take_while(|line| !line.starts_with('['));
        match database.find_map(|line| line.strip_prefix("db-system-id=")) {
            Some(id) if id.trim() != system_id.to_string() => Holder::Another,
            _ => Holder::This,
        }
    }
}

/// The stanza of a cluster for which `main` is taken.
pub fn own(system_id: u64) -> String {
    format!("{DEFAULT}-{system_id}")
}

/// Whether a stanza is one that is chosen, and not one that an operator named.
pub fn is_chosen(stanza: &str, system_id: u64) -> bool {
    stanza == DEFAULT || stanza == own(system_id)
}

/// The stanza of the cluster with this system identifier. `before` is the one that this very server
/// used last: it stays where it is unless another cluster has it, also while the repository is away.
pub fn choose(system_id: u64, before: Option<&str>, holder: impl Fn(&str) -> Holder) -> String {
    let own = own(system_id);
    let kept = before.filter(|it| is_chosen(it, system_id) && holder(it) != Holder::Another);
    if let Some(kept) = kept {
        return kept.to_string();
    }
    let ours = [DEFAULT, own.as_str()].into_iter().find(|name| holder(name) == Holder::This);
    match ours {
        Some(ours) => ours.to_string(),
        None if holder(DEFAULT) == Holder::Nobody => DEFAULT.to_string(),
        None => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_is_the_first_clusters_and_a_choice_stays() {
        use Holder::{Another, Nobody, This};
        let chosen = |before, main, own: Holder| {
            choose(7, before, |name| if name == DEFAULT { main } else { own })
        };
        for (before, main, own, expected) in [
            (None, Nobody, Nobody, "main"),
            (None, This, Nobody, "main"),
            (None, This, This, "main"),
            (None, Another, Nobody, "main-7"),
            (None, Another, This, "main-7"),
            // The other cluster's was removed: the backups are where they were.
            (None, Nobody, This, "main-7"),
            // The repository is away.
            (Some("main-7"), Nobody, Nobody, "main-7"),
            (Some("main"), Nobody, Nobody, "main"),
            // An earlier version had no other choice.
            (Some("main"), Another, Nobody, "main-7"),
            // A name that the operator gave, and took away again.
            (Some("foo"), Nobody, Nobody, "main"),
        ] {
            assert_eq!(chosen(before, main, own), expected, "{before:?} {main:?} {own:?}");
        }
    }

    #[test]
    fn an_info_file_says_whose_the_stanza_is() {
        let info = "[backrest]\nbackrest-format=5\n\n[db]\ndb-id=2\ndb-system-id=7\n\n\
                    [db:history]\n1={\"db-system-id\":6}\n";
        assert_eq!(Holder::of(info, 7), Holder::This);
        assert_eq!(Holder::of(info, 6), Holder::Another);
        assert_eq!(Holder::of("Salted__ and so on", 7), Holder::This);
        assert_eq!(Holder::of("", 7), Holder::This);
    }
}
