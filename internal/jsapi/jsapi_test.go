package jsapi

import (
	"errors"
	"testing"
)

func TestParseMsgGet(t *testing.T) {
	if m, err := ParseMsgGet([]byte(`{"message":{"seq":7,"hdrs":"aA==","data":"ZA=="},"type":"x"}`)); err != nil || m.Seq != 7 || string(m.Hdrs) != "h" || string(m.Data) != "d" {
		t.Errorf("%+v %v", m, err)
	}
	_, err := ParseMsgGet([]byte(`{"error":{"code":404,"err_code":10037,"description":"no message found"}}`))
	if !Is(err, CodeNoMessage) || Is(err, CodeNoStream) || err.Error() != "JetStream: no message found (10037)" {
		t.Error(err)
	}
	if _, err := ParseMsgGet([]byte(`{}`)); !errors.Is(err, ErrNothing) || Is(err, 0) {
		t.Error(err)
	}
	for _, answer := range []string{"", "[]", "{", `{"message":{"seq":-1}}`} {
		if m, err := ParseMsgGet([]byte(answer)); err == nil {
			t.Errorf("%q: %+v", answer, m)
		}
	}
}
