package main

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/internal/trust"
)

// The keys by which a cluster's processes know each other. They go to stdout alone in a
// line, also into a pipe: that is how they get into a file or a secret store.

func (a *app) clusterKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cluster-key", Short: "Make a key with which locators sign the ring and certify nodes",
		Long: `Make a cluster key: DIALRING_CLUSTER_KEY of all locators of a cluster. With it nobody can
publish a ring, act as a locator or take a node's place who can write to NATS and has no
key. Nodes get keys of their own, which node-key makes from it. Nothing is sent anywhere.`,
		Example: `  umask 077; dialring cluster-key > cluster.key`,
		RunE: func(*cobra.Command, []string) error {
			return a.printKey("cluster_key", trust.NewClusterKey())
		},
	}
}

func (a *app) nodeKeyCommand() *cobra.Command {
	var cluster, file string
	c := &cobra.Command{
		Use: "node-key NODE", Short: "Make the key of a node, or of all nodes whose ids begin alike",
		Long: `Make a node key: DIALRING_NODE_KEY of the node with this id, or, with a * behind, of all
nodes whose ids begin so. It is certified by the first key in the file, and the node will
believe locators with any of them. Nothing is sent anywhere.`,
		Example: `  umask 077; dialring node-key ws-1 --cluster-key-file cluster.key > ws-1.key
  dialring node-key 'ws-*' --cluster-key-file cluster.key`,
		Args: just("node id", "ws-1"),
		RunE: func(_ *cobra.Command, args []string) error {
			text := a.env("DIALRING_CLI_CLUSTER_KEY")
			if file != "" {
				var err error
				if text, err = secretFile("--cluster-key-file", file); err != nil {
					return err
				}
			}
			if text == "" {
				return usagef("the cluster key is needed: --cluster-key-file, or DIALRING_CLI_CLUSTER_KEY")
			}
			authority, err := trust.ParseAuthority(cluster, text)
			if err != nil {
				return usagef("%s: %v", cmp.Or(file, "DIALRING_CLI_CLUSTER_KEY"), err)
			}
			key, err := authority.NewNodeKey(args[0])
			if err != nil {
				return usagef("%v", err)
			}
			return a.printKey("node_key", key)
		},
	}
	c.Flags().StringVar(&cluster, "cluster", "dialring", "`name` of the cluster, as DIALRING_CLUSTER has it")
	c.Flags().StringVar(&file, "cluster-key-file", "", "`file` with the cluster key (default $DIALRING_CLI_CLUSTER_KEY)")
	return c
}

func (a *app) printKey(name, key string) error {
	if a.output == "json" {
		return a.printJSON(map[string]string{name: key})
	}
	return a.print(key + "\n")
}
