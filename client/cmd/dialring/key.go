package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/internal/wire"
)

// keyPrefix tells people, and programs that look for secrets in sources, what this is.
const keyPrefix = "dk_"

func (a *app) keyCommand() *cobra.Command {
	var e wire.KeyEntry
	c := &cobra.Command{
		Use:   "key --name NAME",
		Short: "Make an API key, and its entry for the locators' file",
		Long: `Makes a random API key and shows it, this once. The entry, with the key's digest, goes
into the list keys of the file that DIALRING_API_KEYS_FILE of the locators names; they
read it again by themselves. Nothing is asked of the cluster, and nothing is kept.

Scopes: push (to users and groups, broadcasts), read (users, presence, groups, the
ring), admin (ends sessions, revokes tokens, changes groups, drains nodes). With
--users the key reaches only users whose id, and groups whose name, begins so.`,
		Example: "  dialring key --name billing --scopes push,read --users tenant1:",
		RunE:    func(*cobra.Command, []string) error { return a.key(e) },
	}
	c.Flags().StringVar(&e.Name, "name", "", "who gets the key: a `name` for logs and metrics, of A-Z a-z 0-9 . _ -")
	c.Flags().StringSliceVar(&e.Scopes, "scopes", []string{wire.ScopePush}, "what it may do: some of "+strings.Join(wire.Scopes, ", ")+", separated by commas")
	c.Flags().StringArrayVar(&e.Users, "users", nil, "only users whose id begins with this `prefix`; may be given several times (default all)")
	return c
}

// madeKey is what the command answers.
type madeKey struct {
	Key   string        `json:"key"`
	Entry wire.KeyEntry `json:"entry"`
}

func (a *app) key(e wire.KeyEntry) error {
	if err := wire.CheckKeyName(e.Name); err != nil {
		return usagef("--name: %w", err)
	}
	if err := wire.CheckScopes(e.Scopes); err != nil {
		return usagef("--scopes: %w", err)
	}
	if err := wire.CheckKeyPrefixes(e.Users); err != nil {
		return usagef("--users: %w", err)
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	m := madeKey{Key: keyPrefix + base64.RawURLEncoding.EncodeToString(random[:]), Entry: e}
	m.Entry.SHA256 = wire.Digest(m.Key)
	if a.asJSON() {
		return a.printJSON(m)
	}
	entry, err := json.Marshal(m.Entry)
	if err != nil {
		return err
	}
	return a.print(fmt.Sprintf("key    %s\nentry  %s\n\nGive the key to %s: it is not shown again. Put the entry into the file of\nDIALRING_API_KEYS_FILE, {\"keys\":[…]}.\n", m.Key, entry, e.Name))
}
