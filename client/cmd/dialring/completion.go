package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/internal/wire"
)

// completionTime is how long somebody who presses Tab waits for a locator.
const completionTime = time.Second

// complete has the shell offer what can be meant: the nodes of the ring, the forms of
// output, and the names of files only where there is to be one.
func (a *app) complete(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	file := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	values := map[string]cobra.CompletionFunc{
		"output":       cobra.FixedCompletions([]cobra.Completion{"auto", "json", "table"}, cobra.ShellCompDirectiveNoFileComp),
		"remove":       a.nodes,
		"api-key-file": file, "cluster-key-file": file, "users": file, "token-file": file, "jwt-secret-file": file,
	}
	nothing := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)
	scopes := cobra.FixedCompletions([]cobra.Completion{wire.ScopePush, wire.ScopeRead, wire.ScopeAdmin}, cobra.ShellCompDirectiveNoFileComp)
	for _, c := range append(root.Commands(), root) {
		if c.Name() == "key" { // there users are no file
			_ = c.RegisterFlagCompletionFunc("users", nothing)
			_ = c.RegisterFlagCompletionFunc("scopes", scopes)
		}
		for name, f := range values {
			if c.Flag(name) != nil {
				_ = c.RegisterFlagCompletionFunc(name, f) // fails where all commands have the flag, and it is done
			}
		}
	}
}

// nodes are the ids of the ring's nodes; none if no locator tells them soon.
func (a *app) nodes(c *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	p, err := a.pusher()
	if err != nil || len(args) > 0 {
		return nil, none
	}
	ctx, cancel := context.WithTimeout(c.Context(), completionTime)
	defer cancel()
	r, err := p.Ring(ctx)
	if err != nil {
		return nil, none
	}
	var out []cobra.Completion
	for _, n := range r.Nodes {
		if strings.HasPrefix(n.ID, begun) {
			out = append(out, cobra.CompletionWithDesc(clean(n.ID), n.State+", "+plural(n.Sessions, "session")))
		}
	}
	return out, none
}

// strict has cobra's own commands refuse what they do not know; they would show a help
// and end well.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				_, rest, err := root.Find(args)
				if err == nil && len(rest) > 0 {
					err = fmt.Errorf("there is no command %q", strings.Join(args, " "))
				}
				return err
			}
		case "completion":
			c.Args = func(_ *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("there is no completion for %q; there is for bash, zsh, fish and powershell", args[0])
				}
				return nil
			}
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
}
