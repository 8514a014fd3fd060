package inbox

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/reread"
)

// fatal is what tests, fuzz targets and properties have in common.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

// keyText is a key made of a seed, as it stands in a file.
func keyText(seed byte) string {
	b := bytes.Repeat([]byte{seed}, 32)
	b[0] = ^seed
	return base64.StdEncoding.EncodeToString(b)
}

// keysText is a file with keys, each <id>=<seed>, or <id> for one that is lost.
func keysText(seal string, refuse bool, keys ...string) string {
	f := keysFile{Seal: seal, MessageIDKey: keyText(200), RefuseUnsealed: refuse}
	for _, k := range keys {
		id, seed, ok := strings.Cut(k, "=")
		if ok {
			f.Keys = append(f.Keys, keyLine{ID: id, Key: keyText(seed[0])})
		} else {
			f.Keys = append(f.Keys, keyLine{ID: id, Lost: true})
		}
	}
	b, _ := json.Marshal(f)
	return string(b)
}

// keysOf are keys that no file has.
func keysOf(t fatal, text string) *Keys {
	t.Helper()
	set, err := parseKeys([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	k := &Keys{log: slog.New(slog.DiscardHandler)}
	k.cur.Store(set)
	return k
}

// reopen is a message as the store has it, opened by those keys.
func reopen(t fatal, k *Keys, cluster, user, meta string, body []byte) Entry {
	t.Helper()
	e, err := parseStored(meta, 9, body)
	if err != nil {
		t.Fatal(err)
	}
	k.open(cluster, user, &e)
	return e
}

func why(e *Entry) string {
	if e.Unopened == nil {
		return ""
	}
	return e.Unopened.Why
}

var sealedEntry = Entry{Cursor: Cursor{Seq: 7, Tag: 71}, Prev: 70, ID: "m-1", Time: time.UnixMilli(1_790_000_000_123), TTL: time.Minute, JSON: true, From: "bob", Body: []byte(`{"a":"canary"}`)}

func TestSealed(t *testing.T) {
	a := keysOf(t, keysText("a", false, "a=A"))
	meta, body := a.sealed("c", "alice", &sealedEntry)
	if bytes.Contains(body, []byte("canary")) || strings.Contains(meta, "bob") || strings.Contains(meta, "Ym9i") || len(body) != len(sealedEntry.Body)+1+1+3+xaesNonce+xaesTag {
		t.Fatalf("%s %q", meta, body)
	}
	if _, err := ParseMeta(meta, 1, body); err == nil {
		t.Error("what nodes send to each other may be sealed")
	}
	line := func(change func(f []string)) string {
		f := strings.Fields(meta)
		change(f)
		return strings.Join(f, " ")
	}
	other := sealedEntry
	other.ID, other.Body = "m-2", []byte(`{"a":"another"}`)
	_, otherBody := a.sealed("c", "alice", &other)
	plain := sealedEntry.Meta()
	for name, c := range map[string]struct {
		keys       *Keys
		cluster    string
		user       string
		meta       string
		body       []byte
		want       string
		final, has bool
	}{
		"as it was":                      {a, "c", "alice", meta, body, "", false, true},
		"after a rotation":               {keysOf(t, keysText("b", false, "b=B", "a=A")), "c", "alice", meta, body, "", false, true},
		"nothing is sealed any more":     {keysOf(t, keysText("", false, "a=A")), "c", "alice", meta, body, "", false, true},
		"no keys":                        {noKeys, "c", "alice", meta, body, UnopenedKey, false, false},
		"the key is gone":                {keysOf(t, keysText("b", false, "b=B")), "c", "alice", meta, body, UnopenedKey, false, false},
		"another key of that name":       {keysOf(t, keysText("a", false, "a=B")), "c", "alice", meta, body, UnopenedKey, false, false},
		"the key under another name":     {keysOf(t, keysText("b", false, "b=A")), "c", "alice", meta, body, UnopenedKey, false, false},
		"the key is lost":                {keysOf(t, keysText("b", false, "b=B", "a")), "c", "alice", meta, body, UnopenedLost, true, false},
		"of another user":                {a, "c", "alicf", meta, body, UnopenedForged, true, false},
		"of another cluster":             {a, "d", "alice", meta, body, UnopenedForged, true, false},
		"another body":                   {a, "c", "alice", meta, otherBody, UnopenedForged, true, false},
		"another seq":                    {a, "c", "alice", line(func(f []string) { f[1] = "8" }), body, UnopenedForged, true, false},
		"another tag":                    {a, "c", "alice", line(func(f []string) { f[2] = "8" }), body, UnopenedForged, true, false},
		"another one before it":          {a, "c", "alice", line(func(f []string) { f[3] = "8" }), body, UnopenedForged, true, false},
		"another time":                   {a, "c", "alice", line(func(f []string) { f[4] = "8" }), body, UnopenedForged, true, false},
		"no end":                         {a, "c", "alice", line(func(f []string) { f[5] = "0" }), body, UnopenedForged, true, false},
		"another id":                     {a, "c", "alice", line(func(f []string) { f[7] = "m-2" }), body, UnopenedForged, true, false},
		"another spelling":               {a, "c", "alice", strings.Replace(meta, " ", "  ", 1), body, UnopenedForged, true, false},
		"empty":                          {a, "c", "alice", meta, nil, UnopenedForged, true, false},
		"not sealed":                     {a, "c", "alice", plain, sealedEntry.Body, "", false, true},
		"not sealed, refused":            {keysOf(t, keysText("a", true, "a=A")), "c", "alice", plain, sealedEntry.Body, UnopenedUnsealed, false, false},
		"sealed, where others are not":   {keysOf(t, keysText("a", true, "a=A")), "c", "alice", meta, body, "", false, true},
		"taken for one that is not":      {a, "c", "alice", line(func(f []string) { f[0], f[6] = "1", "b"; f[8] = "" }), body, "", false, false},
		"a node without keys, no sealed": {noKeys, "c", "alice", plain, sealedEntry.Body, "", false, true},
	} {
		e := reopen(t, c.keys, c.cluster, c.user, c.meta, c.body)
		if why(&e) != c.want || e.Unopened != nil && (e.Unopened.Final() != c.final || e.Never(time.UnixMilli(0)) != c.final) {
			t.Errorf("%s: %+v", name, e.Unopened)
		}
		want := sealedEntry
		want.Pos = 9
		if has := same(e, want) && e.From == "bob"; has != c.has {
			t.Errorf("%s: %+v", name, e)
		}
		if e.Unopened != nil && (e.Body != nil || e.From != "" || e.Seq == 0 || e.Tag == 0 || e.Pos != 9) {
			t.Errorf("%s: what is known of it: %+v", name, e)
		}
	}
	// Wherever a bit is another one, and wherever it is cut.
	for i := range body {
		for bit := range 8 {
			bad := slices.Clone(body)
			bad[i] ^= 1 << bit
			if e := reopen(t, a, "c", "alice", meta, bad); why(&e) != UnopenedForged {
				t.Fatalf("bit %d of byte %d: %+v", bit, i, e)
			}
		}
		if e := reopen(t, a, "c", "alice", meta, body[:i]); why(&e) != UnopenedForged {
			t.Fatalf("cut to %d: %+v", i, e)
		}
	}
	if e := reopen(t, a, "c", "alice", meta, append(slices.Clone(body), 0)); why(&e) != UnopenedForged {
		t.Errorf("longer: %+v", e)
	}
	// Two of the same are not the same.
	if _, again := a.sealed("c", "alice", &sealedEntry); bytes.Equal(again[:xaesNonce], body[:xaesNonce]) || bytes.Equal(again[xaesNonce:], body[xaesNonce:]) {
		t.Error("sealed twice the same way")
	}
}

// Bytes of the header, too: whatever is another one is no message, one of another key, or
// does not open.
func TestSealedHeader(t *testing.T) {
	a := keysOf(t, keysText("a", false, "a=A"))
	meta, body := a.sealed("c", "alice", &sealedEntry)
	for i := range len(meta) {
		for bit := range 8 {
			bad := []byte(meta)
			bad[i] ^= 1 << bit
			e, err := parseStored(string(bad), 9, body)
			if err != nil {
				continue
			}
			a.open("c", "alice", &e)
			if w := why(&e); w != UnopenedForged && w != UnopenedKey {
				t.Errorf("bit %d of byte %d: %q is %q", bit, i, bad, w)
			}
		}
	}
}

func TestSealAndOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := keysOf(t, keysText("x.1_-", false, "o=O", "x.1_-=X"))
		user := rapid.StringMatching(`[^\x00-\x1f\x7f]{1,20}`).Draw(t, "user")
		e := Entry{Cursor: Cursor{rapid.Uint64().Draw(t, "seq"), 9, rapid.Uint64().Draw(t, "tag")}, Prev: rapid.Uint64().Draw(t, "prev"),
			ID: rapid.StringMatching(`[!-~]{1,40}`).Draw(t, "id"), Time: time.UnixMilli(rapid.Int64Range(0, 1<<50).Draw(t, "time")),
			TTL:  time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ttl")) * time.Millisecond,
			JSON: rapid.Bool().Draw(t, "json"), From: rapid.StringN(0, 40, 128).Draw(t, "from"), Body: rapid.SliceOf(rapid.Byte()).Draw(t, "body")}
		meta, body := k.sealed("c", user, &e)
		got := reopen(t, k, "c", user, meta, body)
		if got.Unopened != nil || !same(got, e) || got.From != e.From {
			t.Fatalf("%+v came back as %+v", e, got)
		}
		if got := reopen(t, k, "c", user+"x", meta, body); why(&got) != UnopenedForged {
			t.Fatalf("another user's: %+v", got)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := keysOf(f, keysText("a", false, "a=A", "old=O", "lost"))
	meta, body := k.sealed("c", "alice", &sealedEntry)
	f.Add(meta, body)
	f.Add(sealedEntry.Meta(), sealedEntry.Body)
	f.Add(strings.Replace(meta, "a~", "lost~", 1), body)
	f.Fuzz(func(t *testing.T, m string, b []byte) {
		e, err := parseStored(m, 9, b)
		if err != nil {
			return
		}
		k.open("c", "alice", &e)
		sealed := strings.HasPrefix(m, "2") || strings.HasPrefix(strings.TrimSpace(m), "2")
		switch opened := e.Unopened == nil; {
		case opened && sealed && (!bytes.Equal(e.Body, sealedEntry.Body) || e.ID != sealedEntry.ID || e.Tag != sealedEntry.Tag):
			t.Fatalf("%q opened as %+v, which was never sealed", m, e)
		case !opened && (!sealed || e.Body != nil || e.From != ""):
			t.Fatalf("%q: %+v", m, e)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(keysText("a", true, "a=A", "b"))
	f.Fuzz(func(t *testing.T, s string) {
		set, err := parseKeys([]byte(s))
		if err == nil && (len(set.keys)+len(set.lost) == 0 || len(set.keys)+len(set.lost) > maxKeys || set.messageIDs == nil || set.refuse && set.seal == nil) {
			t.Fatalf("%q was taken", s)
		}
	})
}

func TestKeysFile(t *testing.T) {
	many := make([]string, maxKeys)
	for i := range many {
		many[i] = fmt.Sprintf("k%d=%c", i, 'a'+i)
	}
	good := keysText("a", false, "a=A", "b=B")
	for name, text := range map[string]string{
		"two": good, "none seals": keysText("", false, "a=A"), "one is lost": keysText("a", true, "a=A", "b"), "as many as may be": keysText("k3", false, many...),
		"an id of 32": keysText(strings.Repeat("x", 32), false, strings.Repeat("x", 32)+"=A"), "space around": " \n" + good + "\n",
	} {
		if _, err := parseKeys([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := keyText('A')
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "JSON"},
		"no JSON":             {"keys", "JSON"},
		"a list":              {"[]", "JSON"},
		"null":                {"null", "0 entries"},
		"nothing in it":       {"{}", "0 entries"},
		"too long":            {good + strings.Repeat(" ", maxKeysFile), "bytes"},
		"twice":               {good + good, "follows"},
		"unknown field":       {strings.Replace(good, `"seal"`, `"sael"`, 1), "sael"},
		"unknown field below": {strings.Replace(good, `"id"`, `"kid"`, 1), "kid"},
		"too many":            {keysText("k3", false, append(many, "more=z")...), "17"},
		"no id":               {keysText("", false, "=A"), "1 to 32"},
		"a long id":           {keysText("", false, strings.Repeat("x", 33)+"=A"), "1 to 32"},
		"a strange id":        {keysText("", false, "a~b=A"), "1 to 32"},
		"an id with a space":  {keysText("", false, "a b=A"), "1 to 32"},
		"an id twice":         {keysText("a", false, "a=A", "a=B"), "twice"},
		"an id lost and not":  {keysText("a", false, "a=A", "a"), "twice"},
		"a key twice":         {keysText("a", false, "a=A", "b=A"), "one and the same"},
		"lost with its key":   {`{"keys":[{"id":"a","key":"` + a + `","lost":true}],"message_id_key":"` + keyText(200) + `"}`, "lost"},
		"no key":              {`{"keys":[{"id":"a"}],"message_id_key":"` + keyText(200) + `"}`, "openssl"},
		"a short key":         {strings.Replace(good, a, "AAEC", 1), "openssl"},
		"a cut key":           {strings.Replace(good, a, a[:len(a)-1], 1), "openssl"},
		"base64url":           {strings.Replace(good, a, base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb, 0xff}, 16)), 1), "openssl"},
		"a line end in a key": {strings.Replace(good, a, a[:8]+"\\n"+a[8:], 1), "openssl"},
		"zeros":               {strings.Replace(good, a, base64.StdEncoding.EncodeToString(make([]byte, 32)), 1), "openssl"},
		"seals by no key":     {keysText("c", false, "a=A"), "seal names"},
		"seals by a lost one": {keysText("b", false, "a=A", "b"), "seal names"},
		"refuses its own":     {keysText("", true, "a=A"), "refuse_unsealed"},
		"no key for ids":      {strings.Replace(good, keyText(200), "", 1), "message_id_key"},
		"a key for both":      {strings.Replace(good, keyText(200), a, 1), "message_id_key"},
	} {
		_, err := parseKeys([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), a[:8]) {
			t.Errorf("%s: the error tells the key: %v", name, err)
		}
	}
	if _, err := LoadKeys(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "DIALRING_INBOX_KEYS_FILE") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// The file in the operators' guide is one, with keys in it.
func TestKeysFileOfTheGuide(t *testing.T) {
	b, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "```json\n")
	text, _, end := strings.Cut(text, "```")
	if !ok || !end || !strings.Contains(text, "message_id_key") {
		t.Fatal("the guide has no such file")
	}
	const place = "<openssl rand -base64 32>"
	if _, err := parseKeys([]byte(text)); err == nil {
		t.Error("the guide's file is taken without keys")
	}
	for seed := byte('A'); strings.Contains(text, place); seed++ {
		text = strings.Replace(text, place, keyText(seed), 1)
	}
	if set, err := parseKeys([]byte(text)); err != nil || set.seal == nil || len(set.keys) != 1 {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestKeysReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(keysText("a", false, "a=A"))
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		k, err := LoadKeys(file, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.Run(ctx) }()
		look := func() {
			time.Sleep(reread.Look + time.Millisecond)
			synctest.Wait()
		}
		meta, body := k.sealed("c", "alice", &sealedEntry)
		later := keysOf(t, keysText("b", false, "b=B"))
		meta2, body2 := later.sealed("c", "alice", &sealedEntry)
		e := reopen(t, k, "c", "alice", meta2, body2)
		if why(&e) != UnopenedKey {
			t.Fatalf("%+v", e)
		}
		write(keysText("b", false, "b=B", "a=A"))
		look()
		select {
		case <-e.Unopened.Replaced:
		default:
			t.Error("who waits for a key does not hear of it")
		}
		if e := reopen(t, k, "c", "alice", meta2, body2); e.Unopened != nil {
			t.Errorf("after the change: %+v", e)
		}
		if e := reopen(t, k, "c", "alice", meta, body); e.Unopened != nil {
			t.Errorf("what was sealed before: %+v", e)
		}
		if seals, opens := k.Refs(); !strings.HasPrefix(seals, "b~") || len(opens) != 2 || !strings.HasPrefix(opens[0], "a~") {
			t.Errorf("%q, %q", seals, opens)
		}
		write("{")
		for range reread.Again + 2 {
			look()
		}
		if n := strings.Count(log.String(), "event=inbox_keys_unread"); n != 2 { // at first, and ten minutes later
			t.Errorf("%d lines on a file that cannot be used: %s", n, &log)
		}
		for result, want := range map[string]int{"ok\n": 1, "refused error=\"the file is not the JSON": 2} { // what was there at start is no act
			if n := strings.Count(log.String(), fmt.Sprintf("event=audit act=inbox_keys target=%s who=file remote=\"\" result=%s", file, result)); n != want {
				t.Errorf("%d lines of the audit of keys that were %s, want %d: %s", n, result, want, &log)
			}
		}
		if meta, _ := k.sealed("c", "alice", &sealedEntry); !strings.Contains(meta, " b~") {
			t.Errorf("after a file that cannot be used: %s", meta)
		}
		if strings.Contains(log.String(), keyText('A')[:8]) || strings.Contains(log.String(), keyText('B')[:8]) {
			t.Error("a key is in the log")
		}
		cancel()
		<-done
	})
}

// A repeat is known whatever happens to the keys that seal, and nobody finds a service's
// key by trying.
func TestMessageIDs(t *testing.T) {
	a, b := keysOf(t, keysText("a", false, "a=A")), keysOf(t, keysText("b", false, "b=B"))
	if a.Key("alice", "order-1", "x") != b.Key("alice", "order-1", "y") {
		t.Error("a rotation makes a repeat a new message")
	}
	if a.Key("alice", "order-1", "x") == noKeys.Key("alice", "order-1", "x") {
		t.Error("a service's key is hashed without a key")
	}
	if a.Key("alice", "", "x") != noKeys.Key("alice", "", "x") {
		t.Error("a message's own id does not keep its hash")
	}
	if a.Key("alice", "k", "") == a.Key("bob", "k", "") || a.Key("alice", "k", "") == a.Key("alice", "", "k") {
		t.Error("keys meet that must not")
	}
}

// A log through JetStream while keys come and go: its order, repeats, what was stored
// before, and what somebody else puts there.
func TestSealedLog(t *testing.T) {
	s := newJetStream(t, startNATS(t), Limits{Messages: 100, Age: time.Hour, Window: time.Minute})
	ctx := t.Context()
	use := func(text string) {
		k := noKeys
		if text != "" {
			k = keysOf(t, text)
		}
		s.o.Keys.cur.Store(k.cur.Load())
	}
	if _, _, _, err := s.place(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	var ring atomic.Int64
	logs := owned(s, &ring, deliver)
	t.Cleanup(logs.Wait)
	n := 0
	push := func(key, body string) answer {
		n++
		id := fmt.Sprint("id-", n)
		return sendAs(logs, "alice", id, s.o.Keys.Key("alice", key, id), body)
	}
	bodies := func() (out []string) {
		l, err := s.Read(ctx, "alice", 1)
		if err != nil {
			t.Fatal(err)
		}
		for i := range l {
			if l[i].Seq != uint64(i+1) {
				t.Errorf("message %d has seq %d", i, l[i].Seq)
			}
			out = append(out, string(l[i].Body)+why(&l[i]))
		}
		return out
	}
	want := func(want ...string) {
		t.Helper()
		if got := bodies(); !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	first := func(a answer, seq uint64) {
		t.Helper()
		if a.err != nil || a.repeat || a.seq != seq {
			t.Fatalf("%+v, want message %d", a, seq)
		}
	}
	repeat := func(a answer, seq uint64) {
		t.Helper()
		if a.err != nil || !a.repeat || a.seq != seq {
			t.Fatalf("%+v, want a repeat of %d", a, seq)
		}
	}
	first(push("", "plain"), 1)
	use(keysText("a", false, "a=A"))
	first(push("k", "by a"), 2)
	use(keysText("a", false, "a=A", "b=B"))
	repeat(push("k", "by a"), 2)
	use(keysText("b", false, "b=B", "a=A"))
	ring.Add(1) // another owner
	repeat(push("k", "by a"), 2)
	if a := push("k", "another body"); !errors.Is(a.err, ErrKeyReused) {
		t.Errorf("the key with another body: %+v", a)
	}
	first(push("", "by b"), 3)
	want("plain", "by a", "by b")

	// Without the first key: what it sealed is in its place, its repeat cannot be told from
	// another message, and pushes go on.
	use(keysText("b", false, "b=B"))
	want("plain", UnopenedKey, "by b")
	if a := push("k", "by a"); !errors.Is(a.err, ErrUnavailable) {
		t.Errorf("a repeat that cannot be compared: %+v", a)
	}
	first(push("", "by b again"), 4)
	use("")
	first(push("", "plain again"), 5)
	want("plain", UnopenedKey, UnopenedKey, UnopenedKey, "plain again")
	use(keysText("b", true, "b=B", "a=A"))
	want(UnopenedUnsealed, "by a", "by b", "by b again", UnopenedUnsealed)
	use(keysText("b", false, "b=B", "a=A"))
	want("plain", "by a", "by b", "by b again", "plain again")

	// Somebody with rights in NATS copies a message to the end of the log, and to bob's.
	l, err := s.Read(ctx, "alice", 1)
	if err != nil {
		t.Fatal(err)
	}
	head := l[len(l)-1].Cursor
	p, subject, _, _ := s.place(ctx, "alice")
	raw, err := s.js.Stream(ctx, s.stream(p))
	if err != nil {
		t.Fatal(err)
	}
	got, err := raw.GetMsg(ctx, l[1].Pos)
	if err != nil || bytes.Contains(got.Data, []byte("by a")) {
		t.Fatalf("%q, %v", got.Data, err)
	}
	meta := strings.Fields(got.Header.Get(headerMeta))
	forged := head.next("alice", meta[7], 0)
	line := (&Entry{Cursor: forged, Prev: head.Tag, ID: meta[7], Time: time.Now()}).meta(metaSealed, meta[8])
	_, bobs, _, _ := s.place(ctx, "bob")
	for to, line := range map[string]string{subject: line, bobs: got.Header.Get(headerMeta)} {
		if _, _, err := s.publish(ctx, message{subject: to, meta: line, expect: anySequence, body: got.Data}); err != nil {
			t.Fatal(err)
		}
	}
	want("plain", "by a", "by b", "by b again", "plain again", UnopenedForged)
	if l, err := s.Read(ctx, "bob", 1); err != nil || len(l) != 1 || why(&l[0]) != UnopenedForged {
		t.Errorf("bob has %+v, %v", l, err)
	}
	first(push("", "behind it"), 7)
	if e, err := s.Last(ctx, "alice"); err != nil || string(e.Body) != "behind it" {
		t.Errorf("the last: %+v, %v", e, err)
	}
	if st, err := Find(ctx, s, "alice", Cursor{}, mustHead(t, s, "alice"), time.Now()); err != nil || st.Pending != 6 || len(st.First) != 7 {
		t.Errorf("from the start: %d pending, %v", st.Pending, err)
	}
	// What is no message is sealed for nobody.
	if _, _, err := s.publish(ctx, message{subject: s.positionSubject("alice", "d"), meta: line, expect: anySequence}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Position(ctx, "alice", "d"); !errors.Is(err, errMeta) {
		t.Errorf("a position that is sealed: %v", err)
	}
}

func mustHead(t *testing.T, s Store, user string) Cursor {
	t.Helper()
	e, err := s.Last(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return e.Cursor
}

// What sealing costs a message: go test -bench Seal ./internal/inbox
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{64, 1024, 65536} {
		for name, k := range map[string]*Keys{"plain": noKeys, "sealed": keysOf(b, keysText("a", false, "a=A"))} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				e := sealedEntry
				e.Body = make([]byte, size)
				b.ReportAllocs()
				var stored int
				for b.Loop() {
					meta, body := k.sealed("c", "alice", &e)
					stored = len(meta) + len(body)
				}
				b.ReportMetric(float64(stored), "stored-B")
			})
			b.Run(fmt.Sprintf("open %s/%d", name, size), func(b *testing.B) {
				e := sealedEntry
				e.Body = make([]byte, size)
				meta, body := k.sealed("c", "alice", &e)
				for b.Loop() {
					reopen(b, k, "c", "alice", meta, body)
				}
			})
		}
	}
}
