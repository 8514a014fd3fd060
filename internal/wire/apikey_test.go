package wire

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseKeyFile(t *testing.T) {
	one, two := Digest("one"), Digest("two")
	got, err := ParseKeyFile([]byte(`{"keys":[
		{"name":"billing","sha256":"` + one + `","scopes":["push","read"],"users":["tenant1:","ünï"]},
		{"name":"ops","sha256":"` + strings.ToUpper(two) + `","scopes":["admin"]}]}`))
	want := []KeyEntry{{Name: "billing", SHA256: one, Scopes: []string{"push", "read"}, Users: []string{"tenant1:", "ünï"}}, {Name: "ops", SHA256: two, Scopes: []string{"admin"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := ParseKeyFile([]byte(`{"keys":[]}`)); err != nil || len(got) != 0 {
		t.Errorf("no keys: %+v %v", got, err)
	}
	entry := func(change string) string { // fields behind the good ones
		return `{"name":"billing","sha256":"` + one + `","scopes":["push"]` + change + `}`
	}
	many := make([]string, MaxAPIKeys+1)
	for i := range many {
		many[i] = fmt.Sprintf(`{"name":"k%d","sha256":"%s","scopes":["push"]}`, i, Digest(fmt.Sprint(i)))
	}
	prefixes, _ := json.Marshal(strings.Split(strings.Repeat("a", MaxKeyPrefixes+1), ""))
	for name, c := range map[string]struct{ file, want string }{
		"nothing":                {"", "JSON"},
		"no JSON":                {"keys", "JSON"},
		"a list":                 {"[]", "object"},
		"null":                   {"null", "object"},
		"no keys":                {"{}", "keys is missing"},
		"keys null":              {`{"keys":null}`, "keys must be a list"},
		"keys an object":         {`{"keys":{}}`, "keys must be a list"},
		"keys twice":             {`{"keys":[],"keys":[]}`, "twice"},
		"another field":          {`{"keys":[],"version":1}`, `"version" is not known`},
		"in capitals":            {`{"Keys":[]}`, `"Keys" is not known`},
		"something behind":       {`{"keys":[]} x`, "JSON"},
		"deep":                   {`{"keys":[` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `]}`, "deep"},
		"long":                   {`{"keys":[]}` + strings.Repeat(" ", MaxKeyFile), "bytes"},
		"too many":               {`{"keys":[` + strings.Join(many, ",") + `]}`, "1001 keys"},
		"an entry of text":       {`{"keys":["x"]}`, "entry 1"},
		"an entry of null":       {`{"keys":[null]}`, "entry 1"},
		"an unknown field":       {`{"keys":[` + entry(`,"user":["a"]`) + `]}`, `entry 1 ("billing"): "user" is not known`},
		"a field twice":          {`{"keys":[` + entry(`,"scopes":["admin"]`) + `]}`, `entry 1 ("billing"): "scopes" is there twice`},
		"a field in capitals":    {`{"keys":[` + entry(`,"Scopes":["admin"]`) + `]}`, `"Scopes" is not known`},
		"no name":                {`{"keys":[{"sha256":"` + one + `","scopes":["push"]}]}`, `entry 1 (""): the name is empty`},
		"an empty name":          {`{"keys":[{"name":"","sha256":"` + one + `","scopes":["push"]}]}`, `the name is empty`},
		"a name of a number":     {`{"keys":[{"name":1,"sha256":"` + one + `","scopes":["push"]}]}`, "name must be text"},
		"a name with a newline":  {`{"keys":[{"name":"a\nb","sha256":"` + one + `","scopes":["push"]}]}`, "must consist of"},
		"a long name":            {`{"keys":[{"name":"` + strings.Repeat("n", 65) + `","sha256":"` + one + `","scopes":["push"]}]}`, "65 characters"},
		"no digest":              {`{"keys":[{"name":"a","scopes":["push"]}]}`, "dialring key"},
		"a digest null":          {`{"keys":[{"name":"a","sha256":null,"scopes":["push"]}]}`, "sha256 must be text"},
		"a short digest":         {`{"keys":[{"name":"a","sha256":"` + one[:62] + `","scopes":["push"]}]}`, "64 hexadecimal"},
		"the key itself":         {`{"keys":[{"name":"a","sha256":"dk_secret-itself","scopes":["push"]}]}`, "64 hexadecimal"},
		"the digest of nothing":  {`{"keys":[{"name":"a","sha256":"` + Digest("") + `","scopes":["push"]}]}`, "of nothing"},
		"no scopes":              {`{"keys":[{"name":"a","sha256":"` + one + `"}]}`, "scopes are missing"},
		"empty scopes":           {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":[]}]}`, "scopes are missing"},
		"scopes of text":         {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":"push"}]}`, "scopes must be a list"},
		"a scope of a number":    {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":[1]}]}`, "scopes must be a list"},
		"an unknown scope":       {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":["write"]}]}`, `"write" is none of push, read, admin`},
		"a scope in capitals":    {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":["Push"]}]}`, `"Push" is none of`},
		"a scope twice":          {`{"keys":[{"name":"a","sha256":"` + one + `","scopes":["push","push"]}]}`, "twice"},
		"users null":             {`{"keys":[` + entry(`,"users":null`) + `]}`, "users must be a list"},
		"users empty":            {`{"keys":[` + entry(`,"users":[]`) + `]}`, "users is empty"},
		"users of text":          {`{"keys":[` + entry(`,"users":"a"`) + `]}`, "users must be a list"},
		"an empty prefix":        {`{"keys":[` + entry(`,"users":["a",""]`) + `]}`, "empty prefix"},
		"a prefix of null":       {`{"keys":[` + entry(`,"users":[null]`) + `]}`, "users must be a list"},
		"a prefix with a star":   {`{"keys":[` + entry(`,"users":["a*"]`) + `]}`, "without a *"},
		"a prefix with NUL":      {`{"keys":[` + entry(`,"users":["a\u0000"]`) + `]}`, "control"},
		"too many prefixes":      {`{"keys":[` + entry(`,"users":`+string(prefixes)) + `]}`, "101 prefixes"},
		"two of one name":        {`{"keys":[` + entry("") + `,{"name":"billing","sha256":"` + two + `","scopes":["push"]}]}`, `entry 2 ("billing"): entry 1 has the same name`},
		"two of one key":         {`{"keys":[` + entry("") + `,{"name":"other","sha256":"` + strings.ToUpper(one) + `","scopes":["push"]}]}`, `entry 2 ("other"): entry 1 ("billing") has the same sha256`},
		"the second one's fault": {`{"keys":[` + entry("") + `,{"name":"other","sha256":"` + two + `","scopes":["x"]}]}`, `entry 2 ("other")`},
	} {
		_, err := ParseKeyFile([]byte(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		for _, secret := range []string{one, strings.ToUpper(one), two, one[:62], Digest(""), "dk_secret-itself"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error has the digest: %v", name, err)
			}
		}
	}
}

func FuzzParseKeyFile(f *testing.F) {
	f.Add([]byte(`{"keys":[{"name":"a","sha256":"` + Digest("x") + `","scopes":["push"],"users":["u"]}]}`))
	f.Add([]byte(`{"keys":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := ParseKeyFile(b)
		if err != nil {
			return
		}
		// What was taken is taken again as it is written.
		again, err := json.Marshal(map[string]any{"keys": append([]KeyEntry{}, entries...)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseKeyFile(again); err != nil || len(got) != len(entries) || len(got) > 0 && !reflect.DeepEqual(got, entries) {
			t.Fatalf("%s is read as %+v, %v", again, got, err)
		}
	})
}
