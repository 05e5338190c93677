"""Lists the intents of the task `intents`, and phrases and sentences that request each.

A phrase begins with a verb, which `inflect` inflects; a sentence is used as it is. The field `{clause}` is another
phrase, as the content of a message or reminder; `intent_values.FIELDS` has the other fields.
"""

# one entry is one phrase here
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass

NO_REQUEST = "no_request"


@dataclass(frozen=True, slots=True)
class Intent:
    """Holds the phrases and sentences that request an intent. topic: intents of one topic are requested in similar words."""

    topic: str
    phrases: tuple[str, ...]
    sentences: tuple[str, ...] = ()


def split_at_bars(text: str) -> tuple[str, ...]:
    """Returns the parts of a text between bars, without the spaces around them."""
    return tuple(" ".join(part.split()) for part in text.split("|"))


INTENTS = {
    "device_on": Intent("device", split_at_bars("turn on {device}{where} | turn {device}{where} on | switch on {device}{where} | switch {device}{where} on | start {device}{where} | put {device}{where} on | power up {device}{where} | get {device}{where} running"),
        split_at_bars("I want {device}{where} to be on | {device}{where} should be on | {device}{where} needs to be on")),
    "device_off": Intent("device", split_at_bars("turn off {device}{where} | turn {device}{where} off | switch off {device}{where} | switch {device}{where} off | stop {device}{where} | shut off {device}{where} | power down {device}{where} | cut the power to {device}{where}"),
        split_at_bars("I want {device}{where} to be off | {device}{where} should be off | {device}{where} needs to be off")),
    "device_status": Intent("device", split_at_bars("check whether {device}{where} is on | tell me if {device}{where} is on | see if {device}{where} is off | find out whether {device}{where} is still running | check if {device}{where} is off | tell me whether somebody switched {device}{where} on | see whether anybody turned {device}{where} off"),
        split_at_bars("is {device}{where} on? | is {device}{where} off? | did somebody turn on {device}{where}? | did anybody switch off {device}{where}? | is {device}{where} still running?")),
    "brightness_set": Intent("lights", split_at_bars("set the lights{where} to {percent} | dim the lights{where} to {percent} | bring the lights{where} up to {percent} | turn the lights{where} down to {percent} | put the brightness{where} at {percent} | change the brightness{where} to {percent}"),
        split_at_bars("I want the lights{where} at {percent} | the lights{where} should be at {percent} | the brightness{where} needs to be {percent}")),
    "brightness_up": Intent("lights", split_at_bars("turn up the lights{where} | turn the lights{where} up | make the lights{where} brighter | brighten the lights{where} | raise the brightness{where} | make it less dark{where} | bring up the brightness{where}"),
        split_at_bars("it is too dark{where} | the lights{where} are too dim | the lights{where} are not bright enough | it should be brighter{where}")),
    "brightness_down": Intent("lights", split_at_bars("turn down the lights{where} | turn the lights{where} down | make the lights{where} dimmer | dim the lights{where} | lower the brightness{where} | make it less bright{where} | bring down the brightness{where}"),
        split_at_bars("it is too bright{where} | the lights{where} are too bright | the lights{where} are not dim enough | it should be darker{where}")),
    "temperature_set": Intent("heating", split_at_bars("set the heating{where} to {degrees} | heat {room} to {degrees} | turn the heating{where} down to {degrees} | put the temperature{where} at {degrees} | bring the temperature{where} up to {degrees} | cool {room} to {degrees}"),
        split_at_bars("I want it to be {degrees}{where} | it should be {degrees}{where} | the temperature{where} needs to be {degrees}")),
    "temperature_up": Intent("heating", split_at_bars("turn up the heating{where} | turn the heating{where} up | make it warmer{where} | raise the temperature{where} | make it less cold{where} | bring up the temperature{where}"),
        split_at_bars("it is too cold{where} | it is not warm enough{where} | it should be warmer{where} | it is too cool{where}")),
    "temperature_down": Intent("heating", split_at_bars("turn down the heating{where} | turn the heating{where} down | make it colder{where} | lower the temperature{where} | make it less warm{where} | bring down the temperature{where}"),
        split_at_bars("it is too warm{where} | it is not cool enough{where} | it should be colder{where} | it is too hot{where}")),
    "temperature_get": Intent("heating", split_at_bars("check the temperature{where} | tell me how warm it is{where} | find out how cold it is{where} | see what the temperature is{where} | tell me if it is warm{where} | check whether it is cold{where}"),
        split_at_bars("how warm is it{where}? | what is the temperature{where}? | is it cold{where}? | how many degrees is it{where}?")),
    "door_lock": Intent("door", split_at_bars("lock the door{where} | turn the key in the door{where} | make the door{where} secure | put the lock{where} on | bolt the door{where}"),
        split_at_bars("the door{where} should be locked | I want the door{where} to be locked | the lock{where} needs to be on")),
    "door_unlock": Intent("door", split_at_bars("unlock the door{where} | take the lock{where} off | undo the lock{where} | let somebody in through the door{where} | unbolt the door{where}"),
        split_at_bars("the door{where} should be unlocked | I want the door{where} to be unlocked | the lock{where} needs to be off")),
    "door_status": Intent("door", split_at_bars("check whether the door{where} is locked | tell me if the door{where} is unlocked | see if the lock{where} is on | find out whether somebody locked the door{where} | check if the lock{where} is off"),
        split_at_bars("is the door{where} locked? | is the door{where} unlocked? | did somebody lock the door{where}? | did anybody unlock the door{where}?")),
    "blinds_open": Intent("blinds", split_at_bars("open the blinds{where} | raise the blinds{where} | bring the blinds{where} up | let in some sun{where} | draw up the blinds{where}"),
        split_at_bars("the blinds{where} should be open | I want the blinds{where} to be up | the blinds{where} need to be raised")),
    "blinds_close": Intent("blinds", split_at_bars("close the blinds{where} | lower the blinds{where} | bring the blinds{where} down | keep the sun out{where} | draw down the blinds{where}"),
        split_at_bars("the blinds{where} should be closed | I want the blinds{where} to be down | the blinds{where} need to be lowered")),
    "music_play": Intent("music", split_at_bars("play {music}{where} | put {music} on{where} | start {music}{where} | put on {music}{where} | turn on {music}{where}"),
        split_at_bars("I want to hear {music}{where} | I feel like listening to {music}{where} | there should be {music} on{where}")),
    "music_stop": Intent("music", split_at_bars("stop the music{where} | turn off the music{where} | turn the music{where} off | switch off the music{where} | end the music{where}"),
        split_at_bars("I want the music{where} to stop | the music{where} should be off | there should be no music{where}")),
    "song_next": Intent("music", split_at_bars("play the next song | skip this song | go to the next song | jump to the song after this one | move on to the next song"),
        split_at_bars("I want the next song | I want to hear the song after this one | the next song should be on")),
    "song_previous": Intent("music", split_at_bars("play the previous song | play the last song again | go back to the previous song | jump to the song before this one | go back a song"),
        split_at_bars("I want the previous song | I want to hear the song before this one | the previous song should be on")),
    "volume_set": Intent("music", split_at_bars("set the volume{where} to {percent} | turn the volume{where} up to {percent} | bring the volume{where} down to {percent} | put the music{where} at {percent} | change the volume{where} to {percent}"),
        split_at_bars("I want the volume{where} at {percent} | the volume{where} should be {percent} | the music{where} needs to be at {percent}")),
    "volume_up": Intent("music", split_at_bars("turn up the music{where} | turn the volume{where} up | make the music{where} louder | raise the volume{where} | make the music{where} less quiet"),
        split_at_bars("the music{where} is too quiet | the music{where} is not loud enough | the volume{where} is too low | the music{where} should be louder")),
    "volume_down": Intent("music", split_at_bars("turn down the music{where} | turn the volume{where} down | make the music{where} quieter | lower the volume{where} | make the music{where} less loud"),
        split_at_bars("the music{where} is too loud | the music{where} is not quiet enough | the volume{where} is too high | the music{where} should be quieter")),
    "alarm_set": Intent("alarm", split_at_bars("set an alarm for {time}{when} | wake me at {time}{when} | wake me up at {time}{when} | get me up at {time}{when} | put an alarm at {time}{when} | add an alarm for {time}{when}"),
        split_at_bars("I want to get up at {time}{when} | I need an alarm for {time}{when} | I have to be up at {time}{when}")),
    "alarm_cancel": Intent("alarm", split_at_bars("cancel the alarm for {time}{when} | delete my alarm for {time}{when} | turn off the alarm for {time}{when} | remove the alarm at {time}{when} | clear the alarm for {time}{when}"),
        split_at_bars("the alarm for {time}{when} has to go | I want the alarm for {time}{when} to be gone | there should be no alarm at {time}{when} any more")),
    "alarm_check": Intent("alarm", split_at_bars("check whether I have an alarm for {time}{when} | tell me if there is an alarm for {time}{when} | see if I set an alarm for {time}{when} | find out whether my alarm for {time}{when} is on"),
        split_at_bars("do I have an alarm for {time}{when}? | is there an alarm for {time}{when}? | did I set an alarm for {time}{when}? | is my alarm for {time}{when} on?")),
    "timer_set": Intent("timer", split_at_bars("set a timer for {minutes} | start a timer of {minutes} | count down {minutes} | start counting down {minutes} | put {minutes} on the timer"),
        split_at_bars("I need a timer of {minutes} | I want a timer for {minutes} | the timer should run for {minutes}")),
    "timer_cancel": Intent("timer", split_at_bars("cancel the timer | stop the timer | turn off the timer | delete the timer | stop counting down"),
        split_at_bars("the timer has to go | I want the timer to stop | the timer should not go on")),
    "timer_check": Intent("timer", split_at_bars("check the timer | tell me how long the timer has to go | see how much time is left on the timer | find out whether the timer is still running | tell me what is left on the timer"),
        split_at_bars("how much time is left on the timer? | is the timer still running? | how long does the timer have to go? | did somebody stop the timer?")),
    "reminder_set": Intent("reminder", split_at_bars("remind me at {time}{when} to {clause} | set a reminder for {time}{when} to {clause} | tell me at {time}{when} that I have to {clause} | let me know at {time}{when} that I must {clause}"),
        split_at_bars("I need a reminder at {time}{when} to {clause} | I want to be reminded at {time}{when} to {clause}")),
    "reminder_cancel": Intent("reminder", split_at_bars("cancel the reminder {day} | delete my reminder {day} | remove the reminder {day} | turn off the reminder {day}"),
        split_at_bars("the reminder {day} has to go | I want the reminder {day} to be gone | there should be no reminder {day} any more")),
    "call_start": Intent("person", split_at_bars("call {person}{when} | phone {person}{when} | ring {person}{when} | give {person} a call{when} | get {person} on the phone{when}"),
        split_at_bars("I want to talk to {person}{when} | I need to speak to {person}{when} | I have to talk to {person} on the phone{when}")),
    "message_send": Intent("person", split_at_bars("tell {person} to {clause} | text {person} to {clause} | send {person} a message to {clause} | let {person} know that I have to {clause} | write to {person} that somebody has to {clause} | ask {person} to {clause}"),
        split_at_bars("{person} should get a message to {clause} | I want {person} to know that I have to {clause}")),
    "messages_read": Intent("person", split_at_bars("read me the messages from {person} | check what {person} wrote | tell me what {person} texted | see if there is a message from {person} | find out what {person} sent me"),
        split_at_bars("what did {person} write? | is there a message from {person}? | did {person} text me? | did {person} send me something?")),
    "list_add": Intent("list", split_at_bars("add {item} to the list | put {item} on the list | write {item} on my list | note that we need {item} | put down {item} to buy"),
        split_at_bars("we are out of {item} | we need {item} | I want to have {item} on the list")),
    "list_remove": Intent("list", split_at_bars("remove {item} from the list | take {item} off the list | delete {item} from my list | strike {item} off the list | cross {item} off my list"),
        split_at_bars("I want {item} off the list | you should not keep {item} on the list | the list should be without {item}")),
    "list_check": Intent("list", split_at_bars("check whether we have {item} on the list | tell me if we need {item} | see if there is {item} on my list | find out whether somebody put {item} on the list | tell me whether we are out of {item}"),
        split_at_bars("do we have {item} on the list? | do we need {item}? | did somebody put {item} on the list? | are we out of {item}?")),
    "weather_get": Intent("calendar", split_at_bars("tell me what the weather is {day} | check the weather {day} | find out if it rains {day} | see whether it is going to be warm {day} | tell me if I need a coat {day}"),
        split_at_bars("what is the weather {day}? | does it rain {day}? | is it going to be cold {day}? | do I need a coat {day}?")),
    "event_add": Intent("calendar", split_at_bars("add a meeting with {person} {day} at {time} | put a meeting with {person} in my calendar {day} at {time} | schedule a meeting with {person} {day} at {time} | set up a meeting with {person} {day} at {time}"),
        split_at_bars("I want to have a meeting with {person} {day} at {time} | I need a meeting with {person} {day} at {time} | I want to meet {person} {day} at {time}")),
    "event_move": Intent("calendar", split_at_bars("move my meeting with {person} to {time}{when} | put off my meeting with {person} until {time}{when} | change the meeting with {person} to {time}{when} | shift the meeting with {person} to {time}{when}"),
        split_at_bars("the meeting with {person} should be at {time}{when} instead | my meeting with {person} has to move to {time}{when} | the meeting with {person} is going to be at {time}{when} instead")),
    "event_cancel": Intent("calendar", split_at_bars("cancel my meeting with {person}{when} | delete the meeting with {person}{when} | remove the meeting with {person}{when} from my calendar | call off my meeting with {person}{when}"),
        split_at_bars("the meeting with {person}{when} has to go | I want the meeting with {person}{when} to be gone | my meeting with {person}{when} should be called off")),
    "event_check": Intent("calendar", split_at_bars("check when I meet {person}{when} | tell me if I have a meeting with {person}{when} | see whether the meeting with {person}{when} is in my calendar | find out when my meeting with {person}{when} is"),
        split_at_bars("when do I meet {person}{when}? | do I have a meeting with {person}{when}? | is there a meeting with {person}{when}? | when is my meeting with {person}{when}?")),
    "vacuum_start": Intent("vacuum", split_at_bars("vacuum {room} | start the vacuum{where} | clean the floor{where} | run the vacuum{where} | send the vacuum to {room}"),
        split_at_bars("the floor{where} needs to be cleaned | I want {room} to be vacuumed | the vacuum should clean {room}")),
    "vacuum_stop": Intent("vacuum", split_at_bars("stop the vacuum{where} | send the vacuum{where} back to its base | turn off the vacuum{where} | stop cleaning the floor{where}"),
        split_at_bars("I want the vacuum{where} to stop | the vacuum{where} should go back to its base | the vacuum{where} should not go on")),
}
NAMES = (*INTENTS, NO_REQUEST)

# Gerund and participle of the irregular verbs.
IRREGULAR_VERBS = {
    "put": ("putting", "put"), "get": ("getting", "gotten"), "stop": ("stopping", "stopped"), "shut": ("shutting", "shut"), "cut": ("cutting", "cut"),
    "tell": ("telling", "told"), "see": ("seeing", "seen"), "find": ("finding", "found"), "set": ("setting", "set"), "dim": ("dimming", "dimmed"),
    "bring": ("bringing", "brought"), "make": ("making", "made"), "take": ("taking", "taken"), "undo": ("undoing", "undone"), "let": ("letting", "let"),
    "keep": ("keeping", "kept"), "draw": ("drawing", "drawn"), "go": ("going", "gone"), "wake": ("waking", "woken"), "ring": ("ringing", "rung"),
    "give": ("giving", "given"), "send": ("sending", "sent"), "write": ("writing", "written"), "read": ("reading", "read"), "run": ("running", "run"),
    "strike": ("striking", "struck"), "skip": ("skipping", "skipped"), "cancel": ("canceling", "canceled"),
}


def inflect(phrase: str) -> tuple[str, str]:
    """Returns a phrase with its first word as a gerund and as a past participle."""
    verb, _, rest = phrase.partition(" ")
    stem = verb.removesuffix("e")
    gerund, participle = IRREGULAR_VERBS.get(verb, (f"{stem}ing", f"{stem}ed"))
    return f"{gerund} {rest}", f"{participle} {rest}"
