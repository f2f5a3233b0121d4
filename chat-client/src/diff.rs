//! Changes of an observable list.

/// A change of a list. A snapshot to which the changes are applied in order is the list.
///
/// ```
/// use chat_client::Diff;
/// let mut list = vec!["a", "c"];
/// Diff::Insert { index: 1, item: "b" }.apply(&mut list);
/// Diff::Remove { index: 0 }.apply(&mut list);
/// assert_eq!(list, ["b", "c"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Diff<T> {
    /// The item is new at this index; the items from there on move up by one.
    Insert { index: usize, item: T },
    /// The item at this index has changed.
    Update { index: usize, item: T },
    /// The item at this index is gone; the items after it move down by one.
    Remove { index: usize },
    /// All items are replaced.
    Reset { items: Vec<T> },
}

impl<T> Diff<T> {
    /// Applies the change to a list that all earlier changes were applied to.
    ///
    /// # Panics
    /// If the index is out of the list, because an earlier change was not applied.
    pub fn apply(self, list: &mut Vec<T>) {
        match self {
            Self::Insert { index, item } => list.insert(index, item),
            Self::Update { index, item } => list[index] = item,
            Self::Remove { index } => drop(list.remove(index)),
            Self::Reset { items } => *list = items,
        }
    }
}
