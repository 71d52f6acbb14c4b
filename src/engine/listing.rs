//! Which names are held, in their order, a page at a time: what each node tells goes in, names that may be held come out.
//!
//! A node tells what it holds in any order, and some of it twice. No more of that is kept than a page can need: the names that
//! come next on that node. Beyond the last of these nothing is known of it, so names are judged up to there only, and the rest
//! is left to the next page.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lease::{LockName, NamePrefix};
use super::quorum::Quorum;
use super::reply::Stored;

/// Which names a page is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSpec {
    /// How they begin.
    pub prefix: NamePrefix,
    /// They come after this one.
    pub after: Option<LockName>,
    /// The most of them: 1 at least.
    pub size: usize,
}

/// What a node holds under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    value: Arc<[u8]>,
    ends_ms: Option<u64>,
}

/// The names that come next on one node, and what it holds under them.
#[derive(Clone, Debug)]
pub struct Shelf {
    after: Option<LockName>,
    most: usize,
    found: BTreeMap<LockName, Found>,
    /// There are more behind the last one.
    is_cut: bool,
    /// What it does not hold it may have forgotten.
    forgetful: bool,
}

impl Shelf {
    /// Nothing has been told yet.
    pub fn new(spec: &PageSpec) -> Self {
        Self { after: spec.after.clone(), most: spec.size, found: BTreeMap::new(), is_cut: false, forgetful: false }
    }

    /// What the node held under `name` when it was asked, `asked_ms` after the first question to any node. What is no lock is
    /// passed over.
    pub fn put(&mut self, name: &str, stored: Stored, asked_ms: u64) {
        let Some(value) = stored.value.filter(|_| self.has_room_for(name)) else { return };
        let Ok(name) = LockName::new(name) else { return };
        self.found.insert(name, Found { value, ends_ms: stored.left_ms.map(|ms| ms.saturating_add(asked_ms)) });
        if self.found.len() > self.most {
            self.found.pop_last();
            self.is_cut = true;
        }
    }

    fn has_room_for(&self, name: &str) -> bool {
        let is_before = self.after.as_ref().is_some_and(|after| name <= after.as_str());
        !is_before && self.known_to().is_none_or(|last| name <= last.as_str())
    }

    /// The node may not vote: what it lacks it may have forgotten.
    pub fn may_have_forgotten(&mut self) {
        self.forgetful = true;
    }

    /// The last name of which it is known whether the node holds it; `None`: it is known of all.
    fn known_to(&self) -> Option<&LockName> {
        self.found.last_key_value().map(|(name, _)| name).filter(|_| self.is_cut)
    }
}

/// A name that may be held.
#[derive(Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: LockName,
    /// What the nodes hold: a secret of the holder.
    pub value: Arc<[u8]>,
    /// Until when a quorum keeps it, in milliseconds after the first question to any node; where fewer than a quorum are known
    /// to hold it, until the first of them does not. `None`: it has no end.
    pub ends_ms: Option<u64>,
    /// How many nodes are known to hold it.
    pub nodes: usize,
}

/// Names in their order.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    /// As many as a page has at most, often fewer.
    pub listed: Vec<Listed>,
    /// After which name the next page begins; `None`: this is the last one.
    pub next_after: Option<LockName>,
}

impl Page {
    /// From what those nodes told that told everything.
    pub fn of(shelves: &[Shelf], size: usize, quorum: Quorum) -> Self {
        let known_to = shelves.iter().filter_map(Shelf::known_to).min();
        let names: BTreeSet<&LockName> = shelves.iter().flat_map(|shelf| shelf.found.keys()).collect();
        let known = names.into_iter().take_while(|name| known_to.is_none_or(|last| *name <= last));
        let mut all = known.filter_map(|name| judge(name, shelves, quorum));
        let listed: Vec<Listed> = all.by_ref().take(size).collect();
        let next_after = match all.next() {
            Some(_) => listed.last().map(|last| last.name.clone()),
            None => known_to.cloned(),
        };
        Self { listed, next_after }
    }
}

/// The value under `name` that most nodes hold of those that a quorum may hold, if there is one.
fn judge(name: &LockName, shelves: &[Shelf], quorum: Quorum) -> Option<Listed> {
    let found = shelves.iter().filter_map(|shelf| shelf.found.get(name));
    let holds = |shelf: &Shelf, value: &[u8]| shelf.found.get(name).is_some_and(|found| *found.value == *value);
    let votes = |value: &[u8]| shelves.iter().filter(|shelf| holds(shelf, value)).count();
    let unheard = quorum.nodes() - shelves.len();
    let may_hold = |value: &[u8]| shelves.iter().filter(|shelf| shelf.forgetful || holds(shelf, value)).count() + unheard;
    let possible = found.clone().filter(|found| quorum.reached(may_hold(&found.value)));
    let value = &possible.max_by_key(|found| votes(&found.value))?.value;
    let ends: Vec<u64> = found.filter(|found| found.value == *value).map(|found| found.ends_ms.unwrap_or(u64::MAX)).collect();
    let (nodes, first) = (ends.len(), ends.iter().copied().min());
    let ends_ms = quorum.reached_by_quorum(ends).or(first).filter(|ms| *ms != u64::MAX);
    Some(Listed { name: name.clone(), value: value.clone(), ends_ms, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    fn spec(after: Option<LockName>, size: usize) -> PageSpec {
        PageSpec { prefix: NamePrefix::new("").unwrap(), after, size }
    }

    fn stored(value: u8, left_ms: Option<u64>) -> Stored {
        Stored { value: Some([value].as_slice().into()), left_ms }
    }

    /// What a node holds: values and times by name.
    type Content = BTreeMap<String, (u8, Option<u64>)>;

    /// A node that tells all, in an order of its own, and some of it twice.
    fn told(content: &Content, spec: &PageSpec, order: u64) -> Shelf {
        let mut shelf = Shelf::new(spec);
        let mut telling: Vec<_> = content.iter().chain(content.iter().take(3)).enumerate().collect();
        telling.sort_by_key(|(place, _)| (*place as u64 + 1).wrapping_mul(order | 1).rotate_left(17));
        for (_, (name, (value, left_ms))) in telling {
            shelf.put(name, stored(*value, *left_ms), 0);
            assert!(shelf.found.len() <= spec.size, "memory is bounded");
        }
        shelf
    }

    /// The pages one after the other, as somebody asks for them who takes what was not heard for silent.
    fn all_pages(nodes: &[Node], size: usize, order: u64) -> Vec<Listed> {
        let quorum = Quorum::of(nodes.len()).unwrap();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let spec = spec(after.clone(), size);
            let heard = nodes.iter().filter(|node| node.heard);
            let shelves: Vec<Shelf> = heard
                .map(|node| {
                    let mut shelf = told(&node.content, &spec, order);
                    if node.forgetful {
                        shelf.may_have_forgotten();
                    }
                    shelf
                })
                .collect();
            let page = Page::of(&shelves, size, quorum);
            assert!(page.listed.len() <= size);
            all.extend(page.listed);
            if page.next_after.is_none() {
                return all;
            }
            assert!(page.next_after > after, "pages go on");
            after = page.next_after;
        }
    }

    #[derive(Clone, Debug)]
    struct Node {
        content: Content,
        heard: bool,
        forgetful: bool,
    }

    /// Few names and values, so that nodes agree now and then; more than half of the nodes are heard.
    fn nodes() -> impl Strategy<Value = Vec<Node>> {
        let content = prop::collection::btree_map("[a-c*]{1,3}|ü", (0_u8..2, prop::option::of(1_u64..100)), 0..25);
        let node = (content, prop::bool::weighted(0.8), prop::bool::weighted(0.2));
        prop::collection::vec(node, 1..=5).prop_map(|nodes| {
            let quorum = Quorum::of(nodes.len()).unwrap().size();
            let with = |(place, (content, heard, forgetful))| Node { content, heard: heard || place < quorum, forgetful };
            nodes.into_iter().enumerate().map(with).collect()
        })
    }

    /// How many of the nodes hold `value`.
    fn holders(nodes: &[Node], name: &str, value: u8) -> usize {
        nodes.iter().filter(|node| node.content.get(name).is_some_and(|(held, _)| *held == value)).count()
    }

    /// The names that a quorum may hold, with the most votes for one value: in plain words, page by page nowhere.
    fn expected(nodes: &[Node]) -> Vec<(String, usize)> {
        let quorum = Quorum::of(nodes.len()).unwrap().size();
        let heard: Vec<Node> = nodes.iter().filter(|node| node.heard).cloned().collect();
        let names: BTreeSet<&String> = heard.iter().flat_map(|node| node.content.keys()).collect();
        let most = |name: &String| {
            let votes = |value: u8| {
                let lost = |node: &&Node| node.forgetful && node.content.get(name).is_none_or(|(held, _)| *held != value);
                let votes = holders(&heard, name, value);
                let possible = votes + nodes.len() - heard.len() + heard.iter().filter(lost).count();
                (votes > 0 && possible >= quorum).then_some(votes)
            };
            (0..2).filter_map(votes).max()
        };
        names.into_iter().filter_map(|name| Some((name.clone(), most(name)?))).collect()
    }

    proptest! {
        #[test]
        fn the_pages_together_are_all_names_that_may_be_held(nodes in nodes(), size in 1_usize..12, order: u64) {
            let listed = all_pages(&nodes, size, order);
            let listed: Vec<_> = listed.iter().map(|listed| (listed.name.as_str().to_owned(), listed.nodes)).collect();
            prop_assert_eq!(listed, expected(&nodes));
        }

        #[test]
        fn a_held_name_is_listed_whoever_is_silent_or_has_forgotten(nodes in nodes(), size in 1_usize..12, order: u64) {
            let quorum = Quorum::of(nodes.len()).unwrap().size();
            let is_held = |name: &&String| (0..2).any(|value| holders(&nodes, name, value) >= quorum);
            let names: BTreeSet<&String> = nodes.iter().flat_map(|node| node.content.keys()).collect();
            let empty = |node: &Node| if node.forgetful { Content::new() } else { node.content.clone() };
            let now: Vec<Node> = nodes.iter().map(|node| Node { content: empty(node), ..node.clone() }).collect();
            let is_known = |name: &&String| now.iter().any(|node| node.heard && node.content.contains_key(*name));
            let listed = all_pages(&now, size, order);
            for name in names.into_iter().filter(is_held).filter(is_known) {
                prop_assert!(listed.iter().any(|listed| listed.name.as_str() == name), "{} is left out", name);
            }
        }
    }

    fn ends(lefts: &[Option<u64>], nodes: usize) -> Option<u64> {
        let content = |left: &Option<u64>| Content::from([("a".to_owned(), (7, *left))]);
        let shelves: Vec<Shelf> = lefts.iter().map(|left| told(&content(left), &spec(None, 5), 0)).collect();
        Page::of(&shelves, 5, Quorum::of(nodes).unwrap()).listed[0].ends_ms
    }

    #[test]
    fn a_lock_lasts_as_long_as_a_quorum_keeps_it() {
        assert_eq!(ends(&[Some(10), Some(30), Some(20)], 3), Some(20));
        assert_eq!(ends(&[Some(10), None, Some(20)], 3), Some(20));
        assert_eq!(ends(&[None, None, Some(20)], 3), None, "made persistent by somebody");
        assert_eq!(ends(&[Some(10), Some(30), Some(20)], 5), Some(10));
        // Fewer are known: whichever ends first.
        assert_eq!(ends(&[Some(30), Some(20)], 4), Some(20), "of a quorum of three");
    }

    #[test]
    fn a_time_counts_from_when_its_node_was_asked() {
        let mut shelf = Shelf::new(&spec(None, 5));
        shelf.put("a", stored(7, Some(100)), 40);
        let page = Page::of(&[shelf], 5, Quorum::of(1).unwrap());
        assert_eq!(page.listed[0].ends_ms, Some(140));
    }

    #[test]
    fn what_is_no_lock_is_passed_over() {
        let mut shelf = Shelf::new(&spec(Some(name("b")), 5));
        for (name, value) in [("", 1), ("a\nb", 1), ("redlockd:member", 1), ("a", 1), ("b", 1), ("c", 2)] {
            shelf.put(name, stored(value, None), 0);
        }
        shelf.put("d", Stored { value: None, left_ms: None }, 0);
        let page = Page::of(&[shelf], 5, Quorum::of(1).unwrap());
        let names: Vec<&str> = page.listed.iter().map(|listed| listed.name.as_str()).collect();
        assert_eq!(names, ["c"]);
        assert_eq!(page.next_after, None);
    }

    #[test]
    fn a_page_that_is_full_is_the_last_one_if_nothing_comes_after_it() {
        let content: Content = ["a", "b", "c"].map(|name| (name.to_owned(), (7, None))).into();
        let page = |size| Page::of(&[told(&content, &spec(None, size), 0)], size, Quorum::of(1).unwrap());
        assert_eq!(page(3).next_after, None);
        assert_eq!(page(2).next_after, Some(name("b")));
    }
}
