package main

import (
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
)

// The tables for people, of a cluster in which everything happens at once.
func TestTables(t *testing.T) {
	r := client.Ring{Cluster: "dialring", Epoch: 42, Hash: "5f1c9ab2", Nodes: []client.RingNode{
		{ID: "ws-1", URL: "wss://ws-1.example.com/v1/ws", Weight: 1, State: client.NodeActive, Sessions: 4011, Share: 0.334, LastSeen: 412 * time.Millisecond},
		{ID: "ws-2", URL: "wss://ws-2.example.com/v1/ws", Weight: 2, State: client.NodeSuspect, Sessions: 1, Share: 0.666, LastSeen: 4 * time.Second},
		{ID: "ws-3", URL: "wss://ws-3.example.com/v1/ws", Weight: 1, State: client.NodeDraining, Sessions: 120, LastSeen: 0},
		{ID: "ws-4-with-a-long-name", URL: "wss://ws-4.example.com/v1/ws", Weight: 1, State: client.NodeJoining, LastSeen: -time.Millisecond},
	}, Handoffs: []client.Handoff{
		{FromEpoch: 41, Reason: "drain", Nodes: []string{"ws-3"}, Pending: []client.HandoffNode{{Node: "ws-3", Sessions: 120}, {Node: "ws-1", Sessions: 1}}},
		{FromEpoch: 40, Reason: "join", Nodes: []string{"ws-1", "ws-2"}},
	}}
	p := client.Plan{Epoch: 42, Share: 0.25, Sessions: 1003, Moves: []client.PlanMove{{From: "ws-1", To: "ws-4", Share: 0.125, Sessions: 501}, {From: "ws-22", To: "ws-4", Share: 0.125, Sessions: 502}}}
	golden(t, "tables", ringText(r, false)+"\n"+ringText(client.Ring{Cluster: "empty"}, false)+"\n"+planText(p, false)+"\n"+planText(client.Plan{}, false))
	coloured := ringText(r, true)
	for _, want := range []string{"\x1b[32mactive\x1b[0m    33.4%", "\x1b[31msuspect\x1b[0m   66.6%", "\x1b[33mdraining\x1b[0m  0.0%", "\x1b[36mjoining\x1b[0m   0.0%"} {
		if !strings.Contains(coloured, want) {
			t.Errorf("%q is missing in %q", want, coloured)
		}
	}
}

func TestSummaryText(t *testing.T) {
	q := quantiles{Count: 10, P50: 0.412, P95: 1.5, P99: 22.4, Max: 1234}
	s := summary{Load: "abcdefgh", Nodes: 3, Settings: summarySettings{Sessions: 10, Rate: 500, Size: 128, Stored: true, Loop: "open"},
		Sessions: summarySessions{Connected: 10, Reconnects: 2, Moves: 1, Connect: q},
		Pushes:   summaryPushes{Sent: 100, Accepted: 99, Failed: 1, NotSent: 5, PerSecond: 99.6, Latency: q, Failing: q},
		Received: summaryReceived{Count: 98, Lost: 1, Twice: 2, Latency: q},
		Errors:   summaryErrors{Pushes: map[string]int{"store_unavailable": 1}, Sessions: map[string]int{"connection_lost": 2, "close_4201": 1}}}
	closed := summary{Load: "abcdefgh", Settings: summarySettings{Sessions: 1, Size: 64, Loop: "closed"}}
	golden(t, "load", s.text()+"\n"+closed.text())
}

// What others wrote gives no orders to a terminal.
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode 漢字": "plain ünïcode 漢字",
		"a\x1b[2Jb":        `a\u001b[2Jb`,
		"a\nb\tc\x7f":      `a\u000ab\u0009c\u007f`,
		"\u009b31m\u202e":  `\u009b31m\u202e`,
	} {
		if got := clean(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
	if got := clean("a\nb\x1b", '\n'); got != "a\nb\\u001b" {
		t.Errorf("%q", got)
	}
}
