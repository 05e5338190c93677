"""Lists first names for rewritten prompts: some for training, others for the `_surface` splits.

The names are typical of many languages; each has the pronoun that the stories use for it. The templates have other
names (`word_templates.NAMES`), so a renamed prompt is never a prompt of `valid` or `test`.
"""

from __future__ import annotations

from collections.abc import Mapping

HE = """
Aaron Abdul Abel Adam Adnan Adrian Ahmed Aidan Ajay Akira Alan Albert Alejandro Alex Alfonso Alfred Amir Anders Andre
Andrei Andrew Angelo Anil Anthony Anton Antonio Arjun Arne Arthur Arturo Ashok Axel Bilal Björn Bogdan Boris Brian
Bruno Caleb Carl Carlos Cedric Charles Chen Chidi Chris Christian Claude Colin Conor Cyrus Damian Daniel Dario David
Dennis Deepak Diego Dieter Dimitri Dmitri Dominic Duncan Dylan Edgar Eduardo Edwin Eli Elias Emeka Emil Emmanuel
Enrique Enzo Eric Erik Ernesto Ethan Evan Fabian Farid Felipe Felix Femi Fernando Filip Francesco Francis Frank Franz
Fred Gabriel Gareth Gary George Gerald Giorgio Giovanni Gopal Gregory Guillermo Gustav Hamid Hank Hans Haruto Harry
Hassan Hector Henrik Henry Hiro Hugo Hussein Ian Ibrahim Igor Ilya Imran Isaac Ismail Ivan Jacob Jakob Jamal James Jan
Javier Jean Jerome Jesper Jiro Joel John Jonas Jonathan Jorge José Joseph Joshua Juan Julian Jun Kai Kamal Karim Karl
Kevin Khalid Kofi Kumar Kwame Lars Laurent Lawrence Lee Lennart Leonardo Levi Liam Lorenzo Lucas Ludwig Luca Magnus
Malik Manuel Marcel Marco Marcus Mario Martin Mateo Mathias Matthew Maurice Michael Miguel Mikhail Milan Milo Mohamed
Mustafa Nabil Nathan Neil Nicolas Niels Nikhil Nikolai Noah Olaf Oliver Oscar Otto Owen Pablo Patrick Pavel Pedro
Peter Philip Pierre Piotr Prakash Rafael Rahul Raj Ramón Rashid Raymond Ricardo Richard Roberto Robin Rohan Roland
Roman Ronald Rubén Rudolf Ryan Said Salim Samuel Sanjay Santiago Sebastian Sergei Seth Shen Simon Stefan Stephen Sunil
Sven Takeshi Tariq Thabo Theo Thomas Tobias Tomasz Tyler Umar Victor Vijay Vikram Vincent Vladimir Walter Wei Wolfgang
Xavier Yusuf Yuri Zachary Ziad
"""

SHE = """
Abena Ada Adriana Agnes Aisha Akiko Alba Alice Alicia Alina Alma Amanda Amara Amelia Amina Amy Anastasia Andrea Angela
Anita Anja Anjali Anna Anne Annika Antonia Aurora Ayesha Barbara Beatriz Bella Bianca Birgit Brenda Camila Carla
Carmen Carol Caroline Catherine Cecilia Céline Charlotte Chiara Chloe Christina Claire Clara Claudia Cora Cynthia
Daniela Daria Deborah Deepa Delia Denise Diana Divya Dolores Donna Dora Doris Edith Elena Eliza Elizabeth Ella Ellen
Elsa Emilia Emily Emine Erica Esra Esther Eugenia Fatima Fatou Felicia Fiona Florence Frida Gabriela Gemma Gina Giulia
Gloria Greta Hana Hanna Harriet Heidi Helen Helga Ida Imani Ines Ingrid Irene Irina Isabel Isla Ivana Jade Jana
Jasmine Jennifer Jessica Jia Joan Johanna Josephine Joyce Judith Julia Juliana Kamala Karen Karin Katarina Kavya Keiko
Khadija Kiran Klara Kristina Laila Lakshmi Lara Larissa Laura Lea Leila Lena Leonor Leticia Li Lidia Linda Linh Lisa
Livia Lola Lorena Louise Lucia Luisa Lydia Madison Magda Malika Manon Margaret Maria Mariam Marianne Marina Marta
Martha Mary Matilda Maya Meera Mei Melanie Melissa Mercy Michelle Mila Milena Mina Miranda Miriam Monica Mónica Nadia
Naomi Natalia Natasha Neema Neha Nicole Nora Noor Olga Olivia Paloma Pamela Patricia Paula Pauline Petra Phoebe Pilar
Priya Rachel Radha Rana Rania Raquel Rebecca Renata Rita Robyn Rocío Ruth Sabine Sabrina Sakura Samira Sandra Sarita
Selma Serena Shanti Shirin Sigrid Silvia Simone Sofia Sonia Sophie Stella Sunita Susan Svetlana Sylvia Tamara Tania
Tara Teresa Tessa Theresa Tina Ursula Valentina Valeria Vanessa Vera Veronica Victoria Violeta Wangari Wendy Yasmin
Yoko Yolanda Yuki Zainab Zara Zeynep Zofia
"""

HELD_OUT_HE = """
Alonso Amadou Anatoly Bastian Benedict Casper Connor Cristian Desmond Dongwoo Emre Eamon Faisal Finn Florian Gavin
Gilbert Hamza Harold Håkon Idris Jesús Jasper Joaquín Kaito Kenji Kyle Lamar Leon Lothar Marek Mehmet Minh Moses
Nasser Nigel Oleg Omari Patrik Quentin Rajesh Ravi Rory Sandeep Sami Stanislav Tadeusz Tendai Timothy Uwe Vasily
Wilhelm Yannick Zoltan
"""

HELD_OUT_SHE = """
Adele Agata Amal Ayla Beatrice Bronwyn Carina Chiamaka Consuelo Dalia Dagmar Eleanor Elif Farah Fleur Freya Georgia
Gudrun Hiroko Huda Ilse Indira Ingeborg Jolanta Juana Kalina Katya Kimberly Lucinda Ludmila Maeve Marisol Nanami
Nkechi Noelia Odette Olena Padma Penelope Ramona Roxana Rukmini Saoirse Sadia Shreya Siobhán Tatiana Tove Usha Vivian
Wanda Xiomara Ximena Yara Zuzana
"""

# By pronoun. The names keep their accents, which people type.
TRAINING: Mapping[str, tuple[str, ...]] = {"he": tuple(HE.split()), "she": tuple(SHE.split())}
HELD_OUT: Mapping[str, tuple[str, ...]] = {"he": tuple(HELD_OUT_HE.split()), "she": tuple(HELD_OUT_SHE.split())}
