//! How many yes votes make a grant.

/// The most nodes that can be configured. More than nine independent servers make a lock slower, not safer.
pub const MAX_NODES: usize = 9;

/// Position of a node in the configuration, from 0.
pub type NodeIndex = usize;

/// The size of the configured cluster and of a quorum in it: `N / 2 + 1`, whatever number of nodes can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    nodes: usize,
}

impl Quorum {
    /// For `nodes` configured nodes: 1 to [`MAX_NODES`], or `None`.
    pub fn of(nodes: usize) -> Option<Self> {
        (1..=MAX_NODES).contains(&nodes).then_some(Self { nodes })
    }

    /// The configured number of nodes.
    pub fn nodes(self) -> usize {
        self.nodes
    }

    /// How many of them are a quorum.
    pub fn size(self) -> usize {
        self.nodes / 2 + 1
    }

    /// Whether `votes` are enough.
    pub fn reached(self, votes: usize) -> bool {
        if mutant!("quorum-of-one-less") {
            return votes + 1 >= self.size();
        }
        votes >= self.size()
    }

    /// Whether `against` votes make it impossible to find a quorum among the rest.
    pub fn impossible(self, against: usize) -> bool {
        against > self.nodes - self.size()
    }

    /// The `size()`-th largest of `values`: what a quorum of them reaches at least. `None` if there are fewer.
    pub fn reached_by_quorum(self, mut values: Vec<u64>) -> Option<u64> {
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get(self.size() - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_more_than_half_of_the_configured_nodes() {
        let sizes: Vec<usize> = (1..=9).map(|n| Quorum::of(n).unwrap().size()).collect();
        assert_eq!(sizes, [1, 2, 2, 3, 3, 4, 4, 5, 5]);
        for n in 1..=9 {
            let quorum = Quorum::of(n).unwrap();
            assert!(2 * quorum.size() > n, "two quorums of {n} nodes meet in a node");
            assert!(!quorum.impossible(n - quorum.size()));
            assert!(quorum.impossible(n - quorum.size() + 1));
        }
    }

    #[test]
    fn there_is_no_quorum_of_none_and_none_of_too_many() {
        assert_eq!(Quorum::of(0), None);
        assert_eq!(Quorum::of(MAX_NODES + 1), None);
    }

    #[test]
    fn what_a_quorum_reaches_is_its_weakest_member() {
        let quorum = Quorum::of(5).unwrap();
        assert_eq!(quorum.reached_by_quorum(vec![10, 50, 30]), Some(10));
        assert_eq!(quorum.reached_by_quorum(vec![10, 50, 30, 40, 20]), Some(30));
        assert_eq!(quorum.reached_by_quorum(vec![10, 50]), None);
    }
}
