package cluster

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
)

// Heartbeats that break a rule are refused: each is sent before a good one, on
// one connection, so that they would have arrived.
func TestBeatsRefused(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	from, to := dial(t, s, "c"), dial(t, s, "c")
	got := make(chan NodeBeat, 100)
	if err := OnNodeBeat(t.Context(), to, false, func(b NodeBeat) { got <- b }); err != nil {
		t.Fatal(err)
	}
	if err := to.nc.Flush(); err != nil { // the server has the subscription
		t.Fatal(err)
	}
	good := beatOf("good", 1)
	for name, change := range map[string]func(*NodeBeat){
		"another's subject": func(b *NodeBeat) { b.ID = "victim" },
		"id with a dot":     func(b *NodeBeat) { b.ID = "a.b" },
		"id":                func(b *NodeBeat) { b.ID = "A" },
		"no id":             func(b *NodeBeat) { b.ID = "" },
		"long id":           func(b *NodeBeat) { b.ID = strings.Repeat("a", 64) },
		"no boot id":        func(b *NodeBeat) { b.Boot = "" },
		"long boot id":      func(b *NodeBeat) { b.Boot = strings.Repeat("a", 65) },
		"weight 0":          func(b *NodeBeat) { b.Weight = 0 },
		"weight -1":         func(b *NodeBeat) { b.Weight = -1 },
		"weight":            func(b *NodeBeat) { b.Weight = ring.MaxWeight + 1 },
		"push rate -1":      func(b *NodeBeat) { b.PushRate = -1 },
		"huge push rate":    func(b *NodeBeat) { b.PushRate = 1e10 },
		"huge weight":       func(b *NodeBeat) { b.Weight = 1_000_000_000 },
		"loopback":          func(b *NodeBeat) { b.URL = "ws://127.0.0.1:1/v1/ws" },
		"metadata":          func(b *NodeBeat) { b.PeerURL = "http://169.254.169.254/latest" },
		"scheme":            func(b *NodeBeat) { b.URL = "http://good.test/" },
		"no url":            func(b *NodeBeat) { b.URL = "" },
		"no peer url":       func(b *NodeBeat) { b.PeerURL = "" },
	} {
		b := good
		change(&b)
		payload, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		from.publish(subjectNode+"good", payload)
		sentinel := good
		sentinel.Sessions = 1
		BeatNode(from, sentinel)
		if x := await(t, "the good heartbeat", got); x.Sessions != 1 {
			t.Errorf("%s: accepted: %+v", name, x)
			await(t, "the good heartbeat", got)
		}
	}
	for _, raw := range []string{"", "null", "[]", "{", `{"id":5}`, strings.Repeat("[", 10_000)} {
		from.publish(subjectNode+"good", []byte(raw))
	}
	BeatNode(from, good)
	if x := await(t, "the good heartbeat", got); x != good {
		t.Errorf("got %+v, sent %+v", x, good)
	}
}

func TestLocatorBeats(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	from, to := dial(t, s, "c"), dial(t, s, "c")
	got := make(chan LocatorBeat, 10)
	if err := OnLocatorBeat(t.Context(), to, func(b LocatorBeat) { got <- b }); err != nil {
		t.Fatal(err)
	}
	if err := to.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	from.publish(subjectLocator+"x", []byte(`{"id":"y","kid":"0123456789abcdef"}`))
	from.publish(subjectLocator+"X", []byte(`{"id":"X"}`))
	want := LocatorBeat{ID: "loc-1", Epoch: 7, KID: "0123456789abcdef", Time: time.Now().UTC()}
	BeatLocator(from, want)
	if x := await(t, "a heartbeat", got); x.ID != want.ID || x.Epoch != 7 || x.KID != want.KID || !x.Time.Equal(want.Time) {
		t.Errorf("got %+v, sent %+v", x, want)
	}
}

// Two clusters on one NATS have nothing in common: not heartbeats, rings, keys.
func TestClustersDoNotMix(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	one, two := dial(t, s, "c"), dial(t, s, "c-2")
	got := make(chan string, 10)
	for _, c := range []*Conn{one, two} {
		if err := OnNodeBeat(t.Context(), c, true, func(b NodeBeat) { got <- c.cluster + " hears " + b.ID }); err != nil {
			t.Fatal(err)
		}
		if err := c.nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	r1, r2 := follow(t, one), follow(t, two)
	BeatNode(one, beatOf("a", 1))
	if x := await(t, "a heartbeat", got); x != "c hears a" {
		t.Error(x)
	}
	BeatNode(two, beatOf("b", 1))
	if x := await(t, "a heartbeat", got); x != "c-2 hears b" {
		t.Error(x)
	}
	store(t, one, "a")
	store(t, two, "b")
	store(t, two, "b", "d")
	waitRing(t, r1, 1)
	waitRing(t, r2, 2)
	if _, in := r1.Current().Find("a"); !in || r1.Current().Epoch != 1 || len(r1.Current().Nodes) != 1 || r1.Current().Cluster != "c" {
		t.Errorf("the first cluster's ring is %+v", r1.Current().Document)
	}
	if _, in := r2.Current().Find("a"); in || r2.Current().Cluster != "c-2" {
		t.Errorf("the second cluster's ring is %+v", r2.Current().Document)
	}
	k1, k2 := NewKeys(one, NewRings(one, quiet), quiet, ticket.NewSigner(), "locator:1"), NewKeys(two, NewRings(two, quiet), quiet, ticket.NewSigner(), "locator:2")
	background(t, k1.Run)
	background(t, k2.Run)
	await(t, "a published key", k1.Published())
	await(t, "a published key", k2.Published())
	if k2.public(k1.signer.KID) != nil {
		t.Error("a key of one cluster is good in the other")
	}
}

func TestCheckAddress(t *testing.T) {
	for raw, want := range map[string]struct{ cluster, dev bool }{
		"http://node.example.com:8092":       {true, true},
		"https://node.example.com":           {true, true},
		"http://10.0.0.7:8092":               {true, true},
		"http://[2001:db8::7]:8092":          {true, true},
		"http://node-1":                      {true, true},
		"ws://node.example.com":              {},
		"ftp://node.example.com":             {},
		"//node.example.com":                 {},
		"node.example.com:8092":              {},
		"http://":                            {},
		"http://:8092":                       {},
		"":                                   {},
		"http:node":                          {},
		"http://user@node.example.com":       {},
		"http://user:pw@node.example.com":    {},
		"http://node.example.com#f":          {},
		"http://node.example.com:port":       {},
		"http://" + strings.Repeat("a", 600): {},
		"http://127.0.0.1:1":                 {false, true},
		"http://127.8.9.10":                  {false, true},
		"http://127.0.0.1.:1":                {false, true},
		"http://localhost:1":                 {false, true},
		"http://LOCALHOST":                   {false, true},
		"http://localhost.":                  {false, true},
		"http://a.localhost":                 {false, true},
		"http://[::1]:1":                     {false, true},
		"http://[0:0:0:0:0:0:0:1]":           {false, true},
		"http://[::ffff:127.0.0.1]":          {false, true},
		"http://[::ffff:7f00:1]":             {false, true},
		"http://0x7f000001":                  {false, true},
		"http://0x7f.0.0.1":                  {false, true},
		"http://0X7F000001":                  {false, true},
		"http://0177.0.0.1":                  {false, true},
		"http://017700000001":                {false, true},
		"http://127.1":                       {false, true},
		"http://127.0.1":                     {false, true},
		"http://2130706433":                  {false, true},
		"http://169.254.169.254":             {false, true},
		"http://[::ffff:169.254.169.254]":    {false, true},
		"http://2852039166":                  {false, true},
		"http://[fe80::1%25eth0]":            {false, true},
		"http://[fd00:ec2::254]":             {false, true},
		"http://[fd00:ec2::255]":             {true, true}, // a private network may be one's own
		"http://[fd20:ce::254]":              {false, true},
		"http://100.100.100.200":             {false, true},
		"http://[::ffff:100.100.100.200]":    {false, true},
		"http://100.100.100.201":             {true, true},
		"http://168.63.129.16":               {false, true},
		"http://192.0.0.192":                 {false, true},
		"http://[64:ff9b::a9fe:a9fe]":        {false, true},
		"http://[64:ff9b::127.0.0.1]":        {false, true},
		"http://[64:ff9b::a00:1]":            {true, true},
		"http://[2002:7f00:1::1]":            {false, true},
		"http://[2002:a00:1::1]":             {true, true},
		"http://[::127.0.0.1]":               {false, true},
		"http://0.0.0.0":                     {false, true},
		"http://0":                           {false, true},
		"http://[::]":                        {false, true},
		"http://224.0.0.1":                   {false, true},
		"http://[::ffff:0:0]":                {false, true},
		"http://127.0.0.1.example.com":       {true, true},
		"http://localhost.example.com":       {true, true},
		"http://1.2.3.4.5":                   {true, true},
		"http://\uff11\uff12\uff17.0.0.1":    {false, false}, // wide digits, which net/http maps to ASCII
		"http://\u2460\u2461\u2466.0.0.1":    {false, false}, // digits in circles, too
		"http://127\u30020\u30020\u30021:1":  {false, false}, // ideographic full stops, too
		"http://\uff4c\uff4fcalhost":         {false, false},
	} {
		if err := CheckAddress(raw, false, "http", "https"); (err == nil) != want.cluster {
			t.Errorf("%q in a cluster: %v, allowed should be %v", raw, err, want.cluster)
		}
		if err := CheckAddress(raw, true, "http", "https"); (err == nil) != want.dev {
			t.Errorf("%q in development: %v, allowed should be %v", raw, err, want.dev)
		}
	}
}
