package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// TestUserIDs pushes to users whose ids are made to be confused. Each
// must get its own message and no other's.
func TestUserIDs(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
	paths := map[string]string{ // as they stand in the request
		"*": "*", ">": "%3E", "a.b": "a.b", "a": "a", "a b": "a%20b", "a+b": "a+b", "a/b": "a%2Fb", "a%2Fb": "a%252Fb", "a%252Fb": "a%25252Fb",
		"a?b": "a%3Fb", "a#b": "a%23b", "%": "%25", "..": "%2E%2E", "/": "%2F", "😀": "%F0%9F%98%80", "ü": "ü", "A": "%41", "dialring.>": "dialring.%3E",
		"a;b": "a;b", "$SYS": "$SYS", "a\u202Eb": "a%E2%80%AEb", "push": "push", strings.Repeat("u", 128): strings.Repeat("u", 128),
		strings.Repeat("😀", 32): strings.Repeat("%F0%9F%98%80", 32), "u\u0308": "u%CC%88", " ": "%20", `"\`: "%22%5C", "broadcast": "broadcast",
	}
	sessions := map[string]*inprocWS{}
	for user := range paths {
		if sessions[user] = c.connect(user, "web"); sessions[user].welcome.User != user {
			t.Errorf("%q is welcomed as %q", user, sessions[user].welcome.User)
		}
	}
	mine := map[string]string{}
	for user, path := range paths {
		mine[user] = fmt.Sprintf("%d", len(mine))
		body := mine[user]
		request := fmt.Sprintf("POST /v1/push/%s?durable=false HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", path, c.key, len(body), body)
		a, _ := inprocRaw(t, c.at.Listen, request)
		var r wire.PushResult
		if a.status != 200 || json.Unmarshal(a.body, &r) != nil || r.Delivered != 1 {
			t.Errorf("push to %q: %d %s", user, a.status, a.body)
		}
	}
	var b wire.BroadcastResult
	inprocDecode(t, c.call("POST", "/v1/broadcast", inprocJSON, `{"data":"all"}`).body, &b)
	if b.Delivered != len(paths) || b.Nodes != 2 || b.Failed == nil || len(b.Failed) != 0 {
		t.Errorf("the broadcast was answered by %+v", b)
	}
	for user, w := range sessions { // nothing in between
		w.expect(mine[user])
		w.expect(`"all"`)
	}
	for _, path := range []string{"", "%00", "a%00b", "a%0Ab", "a%7Fb", "%C2%80", "%FF", "%C0%AF", "%ED%A0%80", "/", "//", "a/b", "/a", "a//b", "a%2", "a%zz",
		strings.Repeat("u", 129), strings.Repeat("%F0%9F%98%80", 33), strings.Repeat("u", 5000)} {
		a, _ := inprocRaw(t, c.at.Listen, "POST /v1/push/"+path+"?durable=false HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+c.key+"\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1")
		if a.status != 400 && a.status != 404 {
			t.Errorf("push to %.60q: %d %s", path, a.status, a.body)
		}
	}
	// Presence, a look and a kick are of one user each.
	var all []string
	for user := range paths {
		all = append(all, user)
	}
	strangers := []string{"a*", "*.b", "a.*", "a.>", "nobody", "%2A"}
	list, err := json.Marshal(append(slices.Clone(all), strangers...))
	if err != nil {
		t.Fatal(err)
	}
	var online struct{ Online map[string]int }
	inprocDecode(t, c.call("POST", "/v1/presence", inprocJSON, `{"users":`+string(list)+`}`).body, &online)
	for _, user := range all {
		if online.Online[user] != 1 {
			t.Errorf("%q has %d sessions, want 1", user, online.Online[user])
		}
	}
	if len(online.Online) != len(all) {
		t.Errorf("%d users are online, want %d: %v", len(online.Online), len(all), online.Online)
	}
	for _, user := range strangers {
		var u wire.UserResponse
		inprocDecode(t, c.call("GET", "/v1/users/"+url.PathEscape(user), "", "").body, &u)
		if u.User != user || u.Online || len(u.Sessions) > 0 {
			t.Errorf("%q is %+v", user, u)
		}
		if a := c.call("DELETE", "/v1/users/"+url.PathEscape(user)+"/sessions", "", ""); a.status != 200 || !strings.Contains(string(a.body), `"closed":0`) {
			t.Errorf("a kick of %q: %d %s", user, a.status, a.body)
		}
	}
	for _, user := range []string{"*", ">", "a", "dialring.>", "%", "/"} {
		if a := c.call("DELETE", "/v1/users/"+paths[user]+"/sessions", "", ""); a.status != 200 || !strings.Contains(string(a.body), `"closed":1`) {
			t.Errorf("a kick of %q: %d %s", user, a.status, a.body)
		}
		sessions[user].closes(wire.CloseKicked)
		delete(sessions, user)
	}
	for _, w := range sessions {
		w.alive()
	}
}

func TestPushRequests(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{MaxMessageBytes: 10_000}, wsnode.Config{MaxMessageBytes: 10_000})
	const now = "/v1/push/alice?durable=false"
	text := func(n int) string { return strings.Repeat("x", n) }
	quoted := func(n int) string { return `"` + text(n-2) + `"` }
	table := []inprocRequest{
		{"exactly the limit", "POST", now, "text/plain", text(10_000), 200, "", nil},
		{"exactly the limit, JSON", "POST", now, inprocJSON, quoted(10_000), 200, "", nil},
		{"one more", "POST", now, "text/plain", text(10_001), 413, wire.CodeTooLarge, nil},
		{"one more, JSON", "POST", now, inprocJSON, quoted(10_001), 413, wire.CodeTooLarge, nil},
		{"much more", "POST", now, inprocJSON, quoted(200 << 10), 413, wire.CodeTooLarge, nil},
		{"JSON with a charset", "POST", now, "Application/JSON; Charset=UTF-8", `1`, 200, "", nil},
		{"another charset", "POST", now, "application/json; charset=latin1", `1`, 400, inprocBad, nil},
		{"invalid UTF-8", "POST", now, inprocJSON, "\"\xff\"", 400, inprocBad, nil},
		{"UTF-16", "POST", now, inprocJSON, "\xff\xfe1\x00", 400, inprocBad, nil},
		{"BOM", "POST", now, inprocJSON, "\xef\xbb\xbf1", 400, inprocBad, nil},
		{"invalid UTF-8 as bytes", "POST", now, "text/plain", "\xff", 200, "", nil},
		{"empty JSON", "POST", now, inprocJSON, "", 400, inprocBad, nil},
		{"white space", "POST", now, inprocJSON, " \n", 400, inprocBad, nil},
		{"two values", "POST", now, inprocJSON, `1 2`, 400, inprocBad, nil},
		{"trailing comma", "POST", now, inprocJSON, `[1,]`, 400, inprocBad, nil},
		{"NaN", "POST", now, inprocJSON, `NaN`, 400, inprocBad, nil},
		{"control character in a string", "POST", now, inprocJSON, "\"a\nb\"", 400, inprocBad, nil},
		{"depth 32", "POST", now, inprocJSON, inprocNested(32), 200, "", nil},
		{"depth 33", "POST", now, inprocJSON, inprocNested(33), 400, inprocBad, nil},
		{"depth 5,000", "POST", now, inprocJSON, strings.Repeat("[", 5000), 400, inprocBad, nil},
		{"depth 33 in a string only", "POST", now, inprocJSON, `"\"` + strings.Repeat("[", 33) + `"`, 200, "", nil},
		{"a huge number", "POST", now, inprocJSON, "1" + strings.Repeat("0", 9000) + "e999999", 200, "", nil},
		{"gzip", "POST", now, inprocJSON, `1`, 415, inprocBad, []string{"Content-Encoding", "gzip"}},
		{"broken Content-Type", "POST", now, "application/json;;charset", `1`, 400, inprocBad, nil},

		{"device", "POST", "/v1/push/alice?device=web-1", inprocJSON, `1`, 200, "", nil},
		{"device and durable=false", "POST", now + "&device=web-1", inprocJSON, `1`, 200, "", nil},
		{"ttl", "POST", now + "&ttl_ms=1000", inprocJSON, `1`, 200, "", nil},
		{"key of 129 bytes", "POST", now, inprocJSON, `1`, 400, inprocBad, []string{"Idempotency-Key", text(129)}},
		{"stored", "POST", "/v1/push/alice", inprocJSON, `1`, 200, "", nil},
		{"stored, to the letter", "POST", "/v1/push/alice?durable=true", inprocJSON, `1`, 200, "", nil},
		{"stored, wait", "POST", "/v1/push/alice?wait=ack&timeout_ms=50", inprocJSON, `1`, 200, "", []string{"Idempotency-Key", text(128)}},
	}
	for _, q := range []string{"durable=", "durable=0", "durable=False", "durable=no", "durable=false&durable=false", "durable=false&durable=true", "Durable=false",
		"device=", "device=a%20b", "device=" + text(65), "device=web&durable=true", "device=web&device=tv", "ttl_ms=", "ttl_ms=0", "ttl_ms=-1", "ttl_ms=1e3",
		"ttl_ms=1.5", "ttl_ms=10s", "ttl_ms=99999999999999999999", "timeout_ms=x", "wait=", "wait=nack", "wait=ack&durable=false", "wait=ack&device=web",
		"wait=ack&timeout_ms=0", "durable=false&nonsense=1", "durable=%zz", "durable=false;x=1"} {
		table = append(table, inprocRequest{"query " + q, "POST", "/v1/push/alice?" + q, inprocJSON, `1`, 400, inprocBad, nil},
			inprocRequest{"many, query " + q, "POST", "/v1/push?" + q, inprocJSON, `{"users":["a"],"data":1}`, 400, inprocBad, nil})
	}
	c.requests(table)
	for n, status := range map[int]int{10_000: 200, 10_001: 413} { // without a Content-Length
		a := inprocDo(t, "POST", "http://"+c.at.Listen+inprocUserPath("alice"), inprocChunked(text(n)), "Authorization", "Bearer "+c.key)
		if a.status != status {
			t.Errorf("%d bytes in chunks: %d %s", n, a.status, a.body)
		}
	}
}

func TestPushMany(t *testing.T) {
	c := processes(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
	const now = "/v1/push?durable=false"
	users := func(n int) string {
		b := []string{}
		for i := range n {
			b = append(b, fmt.Sprintf(`"many-%d"`, i))
		}
		return "[" + strings.Join(b, ",") + "]"
	}
	big := `"` + strings.Repeat("x", 65536) + `"` // two more than allowed
	c.requests([]inprocRequest{
		{"both forms", "POST", now, inprocJSON, `{"users":["a"],"data":1,"messages":[{"user":"b","data":2}]}`, 400, inprocBad, nil},
		{"neither", "POST", now, inprocJSON, `{}`, 400, inprocBad, nil},
		{"no users", "POST", now, inprocJSON, `{"users":[],"data":1}`, 400, inprocBad, nil},
		{"no messages", "POST", now, inprocJSON, `{"messages":[]}`, 400, inprocBad, nil},
		{"no data", "POST", now, inprocJSON, `{"users":["a"]}`, 400, inprocBad, nil},
		{"users of numbers", "POST", now, inprocJSON, `{"users":[1],"data":1}`, 400, inprocBad, nil},
		{"users of a string", "POST", now, inprocJSON, `{"users":"a","data":1}`, 400, inprocBad, nil},
		{"array", "POST", now, inprocJSON, `[]`, 400, inprocBad, nil},
		{"empty", "POST", now, inprocJSON, ``, 400, inprocBad, nil},
		{"not JSON", "POST", now, inprocJSON, `users=a`, 400, inprocBad, nil},
		{"trailing data", "POST", now, inprocJSON, `{"users":["a"],"data":1}]`, 400, inprocBad, nil},
		{"nested", "POST", now, inprocJSON, `{"users":["a"],"data":` + inprocNested(32) + `}`, 400, inprocBad, nil},
		{"text", "POST", now, "text/plain", `{"users":["a"],"data":1}`, 415, inprocBad, nil},
		{"gzip", "POST", now, inprocJSON, `{"users":["a"],"data":1}`, 415, inprocBad, []string{"Content-Encoding", "gzip"}},
		{"10,001 users", "POST", now, inprocJSON, `{"users":` + users(10_001) + `,"data":1}`, 400, inprocBad, nil},
		{"10,001 messages", "POST", now, inprocJSON, `{"messages":[{}` + strings.Repeat(`,{}`, 10_000) + `]}`, 400, inprocBad, nil},
		{"10^6 keys", "POST", now, inprocJSON, `{"a":1` + strings.Repeat(`,"a":1`, 1_000_000) + `}`, 400, inprocBad, nil},
		{"stored", "POST", "/v1/push", inprocJSON, `{"users":["a"],"data":1}`, 200, "", nil},

		{"broadcast without data", "POST", "/v1/broadcast", inprocJSON, `{}`, 400, inprocBad, nil},
		{"broadcast, not JSON", "POST", "/v1/broadcast", inprocJSON, `x`, 400, inprocBad, nil},
		{"broadcast of an array", "POST", "/v1/broadcast", inprocJSON, `[1]`, 400, inprocBad, nil},
		{"broadcast of text", "POST", "/v1/broadcast", "text/plain", `{"data":1}`, 415, inprocBad, nil},
		{"broadcast with a query", "POST", "/v1/broadcast?device=web", inprocJSON, `{"data":1}`, 400, inprocBad, nil},
		{"broadcast, too large", "POST", "/v1/broadcast", inprocJSON, `{"data":` + big + `}`, 413, wire.CodeTooLarge, nil},
		{"broadcast, nested", "POST", "/v1/broadcast", inprocJSON, `{"data":` + inprocNested(32) + `}`, 400, inprocBad, nil},
	})
	many := func(body string) (out []struct {
		wire.PushResult
		Error *wire.PushError
	}) {
		t.Helper()
		a := c.call("POST", now, inprocJSON, body)
		if a.status != 200 {
			t.Fatalf("%d %.300s", a.status, a.body)
		}
		var r struct{ Results json.RawMessage }
		inprocDecode(t, a.body, &r)
		inprocDecode(t, r.Results, &out)
		return out
	}
	alice, bob := c.connect("alice", "web"), c.connect("bob", "web")

	r := many(`{"users":["bob","nobody","alice","bob"],"data":{"n":1.0}}`)
	for i, want := range []struct {
		user      string
		delivered int
	}{{"bob", 1}, {"nobody", 0}, {"alice", 1}, {"bob", 1}} {
		if r[i].User != want.user || r[i].Delivered != want.delivered || r[i].Error != nil || r[i].ID == "" || r[i].Node == "" || r[i].Stored {
			t.Errorf("result %d is %+v, want %+v", i, r[i], want)
		}
	}
	bob.expect(`{"n":1.0}`)
	bob.expect(`{"n":1.0}`)
	alice.expect(`{"n":1.0}`)

	long := strings.Repeat("k", 129)
	r = many(`{"messages":[{"user":"alice","data":1},{"user":"","data":1},{"user":"a\u0000b","data":1},{"user":"bob"},{"user":"bob","data":` + big + `},
		{"user":"` + strings.Repeat("u", 129) + `","data":1},{"user":"bob","data":1,"id":"` + long + `"},{"user":"bob","data":null},{"data":1},{"user":"alice","data":"2"}]}`)
	codes := []wire.Code{"", inprocBad, inprocBad, inprocBad, wire.CodeTooLarge, inprocBad, inprocBad, "", inprocBad, ""}
	if len(r) != len(codes) {
		t.Fatalf("%d results, want %d", len(r), len(codes))
	}
	for i, code := range codes {
		if code == "" && (r[i].Error != nil || r[i].Delivered != 1) || code != "" && (r[i].Error == nil || r[i].Error.Code != code || r[i].Error.Detail == "") {
			t.Errorf("result %d is %+v %+v, want %q", i, r[i], r[i].Error, code)
		}
	}
	alice.expect(`1`)
	alice.expect(`"2"`)
	bob.expect(`null`)

	r = many(`{"users":` + users(10_000) + `,"data":1}`)
	if len(r) != 10_000 {
		t.Fatalf("%d results, want 10,000", len(r))
	}
	for i := range r {
		if r[i].User != fmt.Sprintf("many-%d", i) || r[i].Error != nil {
			t.Fatalf("result %d is %+v %+v", i, r[i].PushResult, r[i].Error)
		}
	}
	a := c.call("POST", now+"&device=tv", inprocJSON, `{"users":["alice","bob"],"data":1}`)
	if a.status != 200 || strings.Contains(string(a.body), `"delivered":1`) {
		t.Errorf("to a device that is not there: %d %s", a.status, a.body)
	}
	alice.alive()
	bob.alive()
}

// TestInprocPushManyLarge has one call with as many users and as large a message
// as the contract allows, in a cluster that has nothing else to do.
func TestInprocPushManyLarge(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{})
	first, last := c.connect("user-0", "web"), c.connect("user-9999", "web")
	var users []string
	for i := range wire.MaxUsersPerCall {
		users = append(users, fmt.Sprintf("user-%d", i))
	}
	list, err := json.Marshal(users)
	if err != nil {
		t.Fatal(err)
	}
	data := `"` + strings.Repeat("x", 65534) + `"`
	a := c.call("POST", "/v1/push?durable=false", inprocJSON, `{"users":`+string(list)+`,"data":`+data+`}`)
	var r struct {
		Results []struct {
			User      string
			Delivered int
			Error     *wire.PushError
		}
	}
	if inprocDecode(t, a.body, &r); a.status != 200 || len(r.Results) != len(users) {
		t.Fatalf("%d with %d results: %.300s", a.status, len(r.Results), a.body)
	}
	failed := 0
	for i, x := range r.Results {
		if x.Error != nil {
			if failed++; failed == 1 {
				t.Errorf("result %d of %s: %+v", i, x.User, *x.Error)
			}
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d users got an error", failed, len(users))
	}
	first.expect(data)
	last.expect(data)
}
