package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// What the command makes is what locators read.
func TestKey(t *testing.T) {
	t.Parallel()
	o := command(t, "", nil, "key", "--name", "billing", "--scopes", "push,read", "--users", "tenant1:", "--users", "a,b")
	o.want(t, exitDone, "")
	var m madeKey
	decode(t, o.out, &m)
	file, err := json.Marshal(map[string]any{"keys": []wire.KeyEntry{m.Entry}})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := wire.ParseKeyFile(file)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%s: %v", file, err)
	}
	e := entries[0]
	if e.Name != "billing" || e.SHA256 != wire.Digest(m.Key) || strings.Join(e.Scopes, " ") != "push read" || strings.Join(e.Users, " ") != "tenant1: a,b" {
		t.Errorf("%+v", e)
	}
	if !regexp.MustCompile(`^dk_[A-Za-z0-9_-]{43}$`).MatchString(m.Key) || strings.Count(o.out, m.Key) != 1 || o.errors != "" {
		t.Errorf("%+v", o)
	}
	var other madeKey
	decode(t, command(t, "", nil, "key", "--name", "billing").out, &other)
	if other.Key == m.Key || strings.Join(other.Entry.Scopes, " ") != "push" || other.Entry.Users != nil {
		t.Errorf("%+v", other)
	}
	human := command(t, "", nil, "key", "--name", "billing", "--users", "t1:", "-o", "table").out
	key := regexp.MustCompile(`dk_[A-Za-z0-9_-]{43}`).FindString(human)
	golden(t, "key", strings.NewReplacer(key, "<KEY>", wire.Digest(key), "<DIGEST>").Replace(human))
}

func TestKeyRefuses(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"the name is empty":          nil,
		"must consist of":            {"--name", "a b"},
		`"write" is none of push`:    {"--name", "a", "--scopes", "push,write"},
		"scopes are missing":         {"--name", "a", "--scopes", ""},
		"is there twice":             {"--name", "a", "--scopes", "push,push"},
		"empty prefix":               {"--name", "a", "--users", ""},
		"without a *":                {"--name", "a", "--users", "t*"},
		"takes no argument":          {"billing"},
		"unknown flag":               {"--name", "a", "--key", "mine"},
		"it can be json, table or":   {"--name", "a", "-o", "yaml"},
		"flag needs an argument":     {"--name"},
		"a user id has at most 128 ": {"--name", "a", "--users", strings.Repeat("u", 129)},
	} {
		o := command(t, "", nil, append([]string{"key"}, args...)...)
		if o.want(t, exitUsage, want); o.out != "" {
			t.Errorf("%q writes %q", args, o.out)
		}
	}
}
