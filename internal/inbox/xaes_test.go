package inbox

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The vectors of https://c2sp.org/XAES-256-GCM: one for each value of the bit that CMAC's
// subkey depends on.
func TestXAES(t *testing.T) {
	for _, v := range []struct {
		key        byte
		data, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		x, err := newXAES(bytes.Repeat([]byte{v.key}, xaesKey))
		if err != nil {
			t.Fatal(err)
		}
		nonce, text := []byte("ABCDEFGHIJKLMNOPQRSTUVWX"), []byte("XAES-256-GCM")
		got := x.seal(nil, nonce, text, []byte(v.data))
		if hex.EncodeToString(got) != v.want {
			t.Errorf("key %d: %x, want %s", v.key, got, v.want)
		}
		if back, err := x.open(nil, nonce, got, []byte(v.data)); err != nil || !bytes.Equal(back, text) {
			t.Errorf("key %d: opened %q, %v", v.key, back, err)
		}
	}
	if _, err := newXAES(make([]byte, 16)); err == nil {
		t.Error("a key of 16 bytes was taken")
	}
}
