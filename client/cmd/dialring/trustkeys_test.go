package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/trust"
)

func TestKeys(t *testing.T) {
	made := command(t, "", nil, "cluster-key")
	file := filepath.Join(t.TempDir(), "cluster.key")
	if err := os.WriteFile(file, []byte(made.out), 0o600); err != nil || made.code != 0 {
		t.Fatal(made, err)
	}
	again := command(t, "", nil, "cluster-key", "-o", "json")
	var j struct {
		Key string `json:"cluster_key"`
	}
	if err := json.Unmarshal([]byte(again.out), &j); err != nil || j.Key == strings.TrimSpace(made.out) {
		t.Errorf("%+v: %v", again, err)
	}
	authority, err := trust.ParseAuthority("c", made.out)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []outcome{
		command(t, "", nil, "node-key", "ws-*", "--cluster", "c", "--cluster-key-file", file),
		command(t, "", []string{"DIALRING_CLI_CLUSTER_KEY=" + made.out}, "node-key", "ws-*", "--cluster", "c"),
	} {
		key, err := trust.ParseNodeKey("c", "ws-7", how.out)
		if err != nil || how.code != 0 || strings.Count(how.out, "\n") != 1 {
			t.Fatalf("%+v: %v", how, err)
		}
		if err := authority.Anchor().CheckNode(trust.NodeBeat, "ws-7", nil, key.Sign(trust.NodeBeat, nil)); err != nil {
			t.Error(err)
		}
	}
	for _, args := range [][]string{{"node-key", "ws-1"}, {"node-key", "--cluster-key-file", file}, {"node-key", "WS", "--cluster-key-file", file}, {"node-key", "ws-1", "--cluster-key-file", file + "x"},
		{"node-key", "a", "b", "--cluster-key-file", file}, {"cluster-key", "x"}} {
		if o := command(t, "", nil, args...); o.code != exitUsage || o.out != "" || o.errors == "" || strings.Contains(o.errors, strings.TrimSpace(made.out)) {
			t.Errorf("%q: %+v", args, o)
		}
	}
}
